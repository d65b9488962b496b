//! Masked views: what is left of a text when only a hint may be seen. A mask shows the same for values that do not
//! have the expected form as for none at all, and never more than half of a text.

use zeroize::Zeroizing;

/// How a field is masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// `jane.doe@mail.example.com` is `j***@m***.com`.
    Email,
    /// `+4915123456789` is `***6789`: the last four of at least eight digits.
    Phone,
    /// The last four digits of at least twelve.
    Card,
    /// The first letter of each word: `Jane van Doe` is `J*** v*** D***`.
    Name,
    /// Nothing.
    Hidden,
    /// The last 1 to 8 characters, but at most half of the text.
    Last(u8),
    /// The characters at some places, of texts with exactly so many characters.
    Pattern(Pattern),
}

/// `##****##`: which characters are shown; 2 to 32 places, at most half of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    length: u8,
    /// Bit n: the character at n, from 0, is shown.
    shown: u32,
}

impl Pattern {
    fn parse(text: &str) -> Option<Pattern> {
        let length = u8::try_from(text.len()).ok().filter(|n| (2..=32).contains(n))?;
        let mut shown = 0;
        for (at, mark) in text.bytes().enumerate() {
            match mark {
                b'#' => shown |= 1 << at,
                b'*' => {}
                _ => return None,
            }
        }
        (u32::count_ones(shown) <= u32::from(length) / 2).then_some(Pattern { length, shown })
    }
}

/// What stands for anything hidden; always as long, so that it does not tell a length.
const HIDDEN: &str = "***";

impl Mask {
    /// Reads `email`, `phone`, `card`, `name`, `hidden`, `last:1` to `last:8`, `pattern:##****##`.
    pub fn parse(text: &str) -> Option<Mask> {
        Some(match text {
            "email" => Mask::Email,
            "phone" => Mask::Phone,
            "card" => Mask::Card,
            "name" => Mask::Name,
            "hidden" => Mask::Hidden,
            _ => match text.split_once(':')? {
                ("last", n) => match n.as_bytes() {
                    [n @ b'1'..=b'8'] => Mask::Last(n - b'0'),
                    _ => return None,
                },
                ("pattern", pattern) => Mask::Pattern(Pattern::parse(pattern)?),
                _ => return None,
            },
        })
    }

    /// The masked text.
    pub fn apply(self, text: &str) -> Zeroizing<String> {
        // Long enough for most, so that growing does not leave copies behind.
        let mut out = Zeroizing::new(String::with_capacity(text.len().min(256) + 8));
        match self {
            Mask::Email => email(text, &mut out),
            Mask::Phone => {
                last_digits(text, 8, &mut out);
            }
            Mask::Card => last_digits(text, 12, &mut out),
            Mask::Name => name(text, &mut out),
            Mask::Hidden => out.push_str(HIDDEN),
            Mask::Last(n) => {
                let length = text.chars().count();
                out.push_str(HIDDEN);
                out.extend(text.chars().skip(length - usize::from(n).min(length / 2)));
            }
            // Another length is another thing: nothing of it is shown.
            Mask::Pattern(p) if text.chars().count() == usize::from(p.length) => {
                out.extend(text.chars().enumerate().map(|(at, c)| if p.shown >> at & 1 == 1 { c } else { '*' }));
            }
            Mask::Pattern(_) => out.push_str(HIDDEN),
        }
        out
    }
}

fn email(text: &str, out: &mut String) {
    let parts = text.rsplit_once('@').and_then(|(local, domain)| Some((local, domain.rsplit_once('.')?)));
    match parts {
        Some((local, (host, top))) if local.chars().nth(1).is_some() && host.chars().nth(1).is_some() => {
            out.extend(local.chars().next());
            out.push_str(HIDDEN);
            out.push('@');
            out.extend(host.chars().next());
            out.push_str(HIDDEN);
            out.push('.');
            out.push_str(top);
        }
        // A single letter before or after the @ would be shown whole.
        Some((_, (_, top))) => {
            out.push_str(HIDDEN);
            out.push('@');
            out.push_str(HIDDEN);
            out.push('.');
            out.push_str(top);
        }
        None => out.push_str(HIDDEN),
    }
}

fn last_digits(text: &str, at_least: usize, out: &mut String) {
    let digits = text.chars().filter(char::is_ascii_digit).count();
    out.push_str(HIDDEN);
    if digits >= at_least {
        out.extend(text.chars().filter(char::is_ascii_digit).skip(digits - 4));
    }
}

fn name(text: &str, out: &mut String) {
    // Scripts without spaces put a whole name into two or three characters: the first one is at most half.
    for word in text.split_whitespace().take(8) {
        if !out.is_empty() {
            out.push(' ');
        }
        if word.chars().nth(1).is_some() {
            out.extend(word.chars().next());
        }
        out.push_str(HIDDEN);
    }
    if out.is_empty() {
        out.push_str(HIDDEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(mask: Mask, text: &str) -> String {
        mask.apply(text).to_string()
    }

    #[test]
    fn masks_show_a_hint() {
        assert_eq!(shown(Mask::Email, "jane.doe+x@mail.example.com"), "j***@m***.com");
        assert_eq!(shown(Mask::Email, "j@m.de"), "***@***.de");
        assert_eq!(shown(Mask::Email, "not an address"), "***");
        assert_eq!(shown(Mask::Phone, "+4915123456789"), "***6789");
        assert_eq!(shown(Mask::Phone, "+12345"), "***");
        assert_eq!(shown(Mask::Card, "4111 1111 1111 1111"), "***1111");
        assert_eq!(shown(Mask::Card, "4111"), "***");
        assert_eq!(shown(Mask::Name, "Jane van Doe"), "J*** v*** D***");
        assert_eq!(shown(Mask::Name, "李 小龙"), "*** 小***");
        assert_eq!(shown(Mask::Name, ""), "***");
        assert_eq!(shown(Mask::Hidden, "secret"), "***");
        assert_eq!(shown(Mask::Last(4), "AB-12345678"), "***5678");
        assert_eq!(shown(Mask::Last(4), "1234"), "***34");
        assert_eq!(shown(Mask::Last(4), "1"), "***");
        let pattern = Mask::parse("pattern:##*****###").unwrap();
        assert_eq!(shown(pattern, "DE12345678"), "DE*****678");
        assert_eq!(shown(pattern, "DE1234567"), "***");
    }

    #[test]
    fn one_spelling_of_a_mask() {
        assert_eq!(Mask::parse("last:8"), Some(Mask::Last(8)));
        for bad in [
            "",
            "last",
            "last:0",
            "last:9",
            "last:10",
            "last:04",
            "Email",
            "pattern:",
            "pattern:###*",
            "pattern:#",
            "pattern:#?",
        ] {
            assert_eq!(Mask::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_mask_never_shows_the_whole(text in "\\PC{1,40}") {
            for mask in [Mask::Email, Mask::Phone, Mask::Card, Mask::Name, Mask::Hidden, Mask::Last(8)] {
                let out = mask.apply(&text);
                prop_assert!(out.contains(HIDDEN));
                if !text.contains('*') {
                    prop_assert!(!out.contains(text.as_str()));
                }
            }
        }

        #[test]
        fn a_mask_of_an_address_keeps_the_secret_part(local in "[b-z]{4,10}", host in "[b-z]{4,10}") {
            let out = Mask::Email.apply(&format!("{local}@{host}.de"));
            prop_assert!(!out.contains(&local[1..]) && !out.contains(&host[1..]));
        }
    }
}
