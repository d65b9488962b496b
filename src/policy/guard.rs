//! The card-number guard: no text field takes a number that could be a payment card's.
//!
//! A card number is 13 to 19 digits whose last one is right by the Luhn formula (ISO/IEC 7812-1), written with or
//! without spaces and hyphens. One in ten other numbers of that length is right too and is refused with them: keep such
//! ids in a field of type integer or data. A number that follows a `+` and has at most 15 digits is a phone number.

const SHORTEST: usize = 13;
const LONGEST: usize = 19;
const LONGEST_PHONE: usize = 15;

/// Whether the text has a card number in it.
pub fn has_card_number(text: &str) -> bool {
    // Most texts have few digits: look at the bytes first. Digits outside ASCII begin with a byte over 0x7f.
    let possible = text.bytes().filter(|b| b.is_ascii_digit() || *b >= 0x80).nth(SHORTEST - 1);
    if possible.is_none() {
        return false;
    }
    let mut run = Run::default();
    for c in text.chars() {
        match digit(c) {
            Some(d) => run.digit(d),
            None if is_separator(c) => run.separator(),
            None => {
                if run.has_card() {
                    return true;
                }
                run.restart(c == '+');
            }
        }
    }
    run.has_card()
}

/// Digits with nothing but separators between them.
#[derive(Default)]
struct Run {
    digits: zeroize::Zeroizing<Vec<u8>>,
    /// Positions in `digits` at which a group begins.
    starts: Vec<usize>,
    /// Separators since the last digit.
    gap: usize,
    after_plus: bool,
}

impl Run {
    fn digit(&mut self, d: u8) {
        if self.digits.is_empty() || self.gap > 0 {
            self.starts.push(self.digits.len());
        }
        self.gap = 0;
        self.digits.push(d);
    }

    fn separator(&mut self) {
        if !self.digits.is_empty() {
            self.gap += 1;
        }
    }

    fn restart(&mut self, after_plus: bool) {
        self.digits.clear();
        self.starts.clear();
        self.gap = 0;
        self.after_plus = after_plus;
    }

    /// A card number begins where a group begins and ends where one ends: a part of a longer group is no number.
    fn has_card(&self) -> bool {
        if self.digits.len() < SHORTEST || (self.after_plus && self.digits.len() <= LONGEST_PHONE) {
            return false;
        }
        let ends = self.starts.iter().skip(1).copied().chain([self.digits.len()]);
        ends.enumerate().any(|(last, end)| {
            self.starts[..=last]
                .iter()
                .rev()
                .take_while(|start| end - **start <= LONGEST)
                .any(|start| end - start >= SHORTEST && luhn(&self.digits[*start..end]))
        })
    }
}

/// The check digit of ISO/IEC 7812-1. All zeros pass the formula and are no number.
fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| match (i % 2, u32::from(*d) * 2) {
            (0, double) => double / 2,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        })
        .sum();
    sum > 0 && sum.is_multiple_of(10)
}

/// Spaces and hyphens of all widths.
fn is_separator(c: char) -> bool {
    matches!(
        c,
        ' ' | '-' | '\u{a0}' | '\u{ad}' | '\u{2000}'
            ..='\u{2015}' | '\u{202f}' | '\u{2212}' | '\u{3000}' | '\u{fe63}' | '\u{ff0d}'
    )
}

/// Zeros of the decimal digits of the scripts in common use.
const ZEROS: [char; 16] = [
    '\u{660}', '\u{6f0}', '\u{7c0}', '\u{966}', '\u{9e6}', '\u{a66}', '\u{ae6}', '\u{b66}', '\u{be6}', '\u{c66}',
    '\u{ce6}', '\u{d66}', '\u{e50}', '\u{ed0}', '\u{1040}', '\u{ff10}',
];

fn digit(c: char) -> Option<u8> {
    if c.is_ascii() {
        return c.to_digit(10).map(|d| d as u8);
    }
    let of = |zero: &char| (c as u32).checked_sub(*zero as u32).filter(|d| *d < 10).map(|d| d as u8);
    ZEROS.iter().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Test numbers that card schemes publish.
    const CARDS: [&str; 9] = [
        "4111111111111111",
        "5555555555554444",
        "2223003122003222",
        "378282246310005",
        "6011111111111117",
        "3530111333300000",
        "30569309025904",
        "4222222222222",
        "6304000000000000000",
    ];

    fn spaced(card: &str, every: usize, by: &str) -> String {
        card.as_bytes().chunks(every).map(|c| std::str::from_utf8(c).unwrap()).collect::<Vec<_>>().join(by)
    }

    #[test]
    fn jc02_card_numbers_are_seen_however_written() {
        for card in &CARDS[..8] {
            assert!(has_card_number(card), "{card}");
            for by in [" ", "-", "\u{a0}", " - ", "\u{2011}"] {
                assert!(has_card_number(&spaced(card, 4, by)), "{card} {by:?}");
            }
            assert!(has_card_number(&format!("my card is {card}, thanks")), "{card}");
            assert!(has_card_number(&format!("order 12 {} 345", spaced(card, 4, " "))), "{card}");
        }
        assert!(has_card_number("+4111 1111 1111 1111"), "too long for a phone number");
        assert!(has_card_number("４１１１１１１１１１１１１１１１"), "full width");
        assert!(has_card_number("٤١١١١١١١١١١١١١١١"), "Arabic-Indic");
        assert!(has_card_number("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"));
    }

    #[test]
    fn other_numbers_pass() {
        for text in [
            "",
            "call me",
            "+4915123456789",
            "+62 812 3456 78903",
            "4111111111111112",
            "411111111111",
            "41111111111111111111111",
            "0000000000000000",
            "4111a1111b1111c1111",
            "550e8400-e29b-41d4-a716-446655440000",
            "2026-11-21 08:49",
        ] {
            assert!(!has_card_number(text), "{text}");
        }
    }

    #[test]
    fn a_long_text_of_digits_is_no_burden() {
        assert!(!has_card_number(&"1".repeat(200_000)));
        let singles = "0 ".repeat(100_000);
        assert!(!has_card_number(&singles));
        assert!(has_card_number(&format!("{singles}4111 1111 1111 1111{singles}")));
    }

    proptest! {
        #[test]
        fn a_right_number_is_seen_anywhere(
            digits in prop::collection::vec(0u8..10, 12..19), before in "[a-z ,]{0,20}", after in "[a-z ,]{0,20}", every in 1usize..7,
        ) {
            let mut number = digits.clone();
            number.push(0);
            let last = (0..10).find(|d| { *number.last_mut().unwrap() = *d; luhn(&number) });
            prop_assume!(last.is_some());
            let text: String = number.iter().map(|d| char::from(b'0' + d)).collect();
            let text = format!("{before}{}{after}", spaced(&text, every, " "));
            prop_assert!(has_card_number(&text));
        }

        #[test]
        fn few_digits_are_never_a_card(text in "[a-z@.]{0,10}[0-9 -]{0,12}[a-z]{0,5}") {
            prop_assert!(!has_card_number(&text));
        }
    }
}
