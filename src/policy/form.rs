//! Forms that a text may have to have. Each says yes or no and never why with a piece of the text.

use super::file::Validator;

/// Whether the text has the form.
pub fn fits(validator: Validator, text: &str) -> bool {
    match validator {
        Validator::None => true,
        Validator::Email => email(text),
        Validator::PhoneE164 => phone_e164(text),
        Validator::Url => url(text),
        Validator::Name => name(text),
        Validator::Ip => text.parse::<std::net::IpAddr>().is_ok(),
    }
}

/// An address as people have them: RFC 5321 without quotes, comments and address literals, letters of any script on
/// both sides (RFC 6531). Local part at most 64 bytes, all at most 254, a domain with a dot.
fn email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let atom = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || letter_beyond_ascii(c);
    let dotted = !local.is_empty() && local.split('.').all(|part| !part.is_empty() && part.chars().all(atom));
    dotted && local.len() <= 64 && text.len() <= 254 && domain.contains('.') && host(domain)
}

/// Labels of 1 to 63 bytes, letters and digits of any script, hyphens inside only; the last is not a number.
fn host(domain: &str) -> bool {
    let good = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || letter_beyond_ascii(c))
    };
    let top_is_a_number = domain.rsplit('.').next().is_some_and(|top| top.bytes().all(|b| b.is_ascii_digit()));
    domain.len() <= 253 && domain.split('.').all(good) && !top_is_a_number
}

/// Letters, digits and the marks that are written with them; no spaces, controls or invisible characters.
fn letter_beyond_ascii(c: char) -> bool {
    !c.is_ascii() && (c.is_alphanumeric() || unicode_normalization::char::is_combining_mark(c))
}

/// ITU-T E.164 in its international form: `+`, then 7 to 15 digits, the first not 0; nothing else.
fn phone_e164(text: &str) -> bool {
    let Some(digits) = text.strip_prefix('+') else { return false };
    (7..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0')
}

/// `http` or `https` with a host and no user name or password; no spaces or controls.
fn url(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else { return false };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (authority, None),
    };
    let port = port.is_none_or(|p| !p.starts_with('+') && p.parse::<u16>().is_ok_and(|p| p > 0));
    let bracketed = name.strip_prefix('[').and_then(|n| n.strip_suffix(']'));
    let named = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.parse::<std::net::Ipv4Addr>().is_ok() || host(name),
    };
    port && named && !path.chars().any(|c| c.is_whitespace() || c.is_control() || "<>\"\\^`{|}".contains(c))
}

/// One line with at least one letter, without controls, and not blank at its ends. Names have no other form.
fn name(text: &str) -> bool {
    text.chars().any(char::is_alphabetic) && !text.chars().any(char::is_control) && text.trim() == text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(validator: Validator, good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(fits(validator, text), "{text}");
        }
        for text in bad {
            assert!(!fits(validator, text), "{text:?}");
        }
    }

    #[test]
    fn addresses() {
        let long = format!("{}@example.com", "a".repeat(65));
        let longer = format!("a@{}.com", ["b".repeat(60).as_str(); 5].join("."));
        check(
            Validator::Email,
            &[
                "a@b.co",
                "jane.doe+news@mail.example.com",
                "o'neil@example.ie",
                "用户@例子.中国",
                "jörg@müller.de",
                "अजय@डाटा.भारत",
            ],
            &[
                "",
                "a",
                "a@b",
                "@b.co",
                "a@",
                "a@@b.co",
                "a b@c.de",
                "a.@b.co",
                ".a@b.co",
                "a..b@c.de",
                "a@b..co",
                "a@-b.co",
                "a@b-.co",
                "a@b.co.",
                "a@1.2.3.4",
                "a@[1.2.3.4]",
                "\"a b\"@c.de",
                "a@b.co\n",
                "a\u{200b}@b.co",
                "<a@b.co>",
                "a@b.c o",
                &long,
                &longer,
            ],
        );
    }

    #[test]
    fn phone_numbers() {
        check(
            Validator::PhoneE164,
            &["+4915123456789", "+628123456789", "+12025550123", "+290212345"],
            &[
                "",
                "+",
                "4915123456789",
                "+0491512345",
                "+49 151 2345",
                "+123456",
                "+1234567890123456",
                "+49151234567x",
                "+４９１５１２３４５６",
            ],
        );
    }

    #[test]
    fn addresses_of_pages() {
        check(
            Validator::Url,
            &[
                "https://example.com",
                "http://example.com:8080/a?b=c#d",
                "https://[::1]/x",
                "http://10.0.0.1/",
                "https://localhost",
                "https://müller.example/straße",
            ],
            &[
                "",
                "example.com",
                "ftp://example.com",
                "https://",
                "https:///x",
                "https://user:pass@example.com",
                "https://u@example.com",
                "https://exa mple.com",
                "https://example.com/a b",
                "https://example.com:0",
                "https://example.com:99999",
                "javascript:alert(1)",
                "https://example.com/\n",
                "https://[::1",
                "https://example.com:+80",
            ],
        );
    }

    #[test]
    fn names_and_addresses_of_machines() {
        check(
            Validator::Name,
            &["Jane", "Nguyễn Thị Minh Khai", "李小龙", "X Æ A-12", "O'Neil, Jr."],
            &["", " ", "123", "a\nb", " Jane", "a\u{7}"],
        );
        check(Validator::Ip, &["10.0.0.1", "2001:db8::1"], &["", "10.0.0", "10.0.0.256", "10.0.0.1:80", "::g"]);
    }

    proptest! {
        #[test]
        fn no_text_panics_a_form(text in any::<String>()) {
            for v in [Validator::Email, Validator::PhoneE164, Validator::Url, Validator::Name, Validator::Ip] {
                fits(v, &text);
            }
        }
    }
}
