//! A thousand made-up people for `quickstart` and `bench`: many scripts, long names, plus-addresses. Compiled in, the same
//! in every run, and nobody real: addresses end in the reserved domain `example.com` (RFC 2606), numbers lie in ranges
//! kept free for fiction or carry a country code with zeros.

/// One person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Subject id: random-looking, says nothing.
    pub id: String,
    pub name: String,
    pub email: String,
    /// E.164.
    pub phone: String,
    pub organisation: String,
    pub ip: String,
    pub user_agent: String,
}

/// (given names, family names, Latin handle) by script.
const NAMES: &[(&[&str], &[&str], &str)] = &[
    (&["Asha", "Rohan", "Meera", "Vikram"], &["Menon", "Sharma", "Iyer", "Kulkarni"], "en"),
    (&["आशा", "रोहन", "मीरा", "विक्रम"], &["शर्मा", "वर्मा", "जोशी", "पटेल"], "hi"),
    (&["கவிதா", "முருகன்", "அருள்", "செல்வி"], &["ராஜன்", "சுப்பிரமணியன்", "நாதன்", "குமார்"], "ta"),
    (&["Siti", "Budi", "Dewi", "Agus"], &["Rahayu", "Santoso", "Lestari", "Wijayakusuma"], "id"),
    (&["Giulia", "Niccolò", "Chiara", "Luca"], &["Ferràri", "D'Angelo", "De Santis", "Bianchi"], "it"),
    (&["Zoë", "Jörg", "Käthe", "Björn"], &["Müller-Lüdenscheidt", "Groß", "Öztürk", "Weiß"], "de"),
    (&["María José", "Íñigo", "Begoña", "Jesús"], &["Núñez de la Peña", "Ibáñez", "Güell", "Ortiz"], "es"),
    (&["Наталья", "Юрий", "Светлана", "Михаил"], &["Кузнецова", "Щербаков", "Ёлкин", "Дьяконов"], "ru"),
    (&["Ελένη", "Γιώργος", "Σοφία", "Νίκος"], &["Παπαδόπουλος", "Γεωργίου", "Αγγέλου", "Δημητρίου"], "el"),
    (&["ليلى", "محمد", "فاطمة", "يوسف"], &["الحسيني", "بن علي", "الزهراني", "العمري"], "ar"),
    (&["נועה", "איתי", "שירה", "אורי"], &["כהן", "לוי", "בן־דוד", "פרידמן"], "he"),
    (&["小红", "伟", "秀英", "子涵"], &["王", "李", "欧阳", "诸葛"], "zh"),
    (&["さくら", "健太", "陽子", "翔"], &["佐藤", "鈴木", "長谷川", "勅使河原"], "ja"),
    (&["지우", "서연", "민준", "하늘"], &["김", "이", "박", "남궁"], "ko"),
    (&["สมชาย", "มาลี", "กานดา", "ประเสริฐ"], &["ศรีสุวรรณ", "จันทร์เพ็ญ", "แก้วมณี", "ทองดี"], "th"),
    (&["Nguyễn", "Thị", "Hữu", "Ngọc"], &["Phạm Hồng Thái", "Trần", "Đặng", "Lê"], "vi"),
    (&["አበበ", "ሰላም", "ተስፋዬ", "ሀና"], &["በቀለ", "ገብረ", "ወልደ", "ታደሰ"], "am"),
    (&["ნინო", "გიორგი", "თამარ", "ლევან"], &["ბერიძე", "კაპანაძე", "გელაშვილი", "მაისურაძე"], "ka"),
    (&["Անի", "Արմեն", "Նարե", "Տիգրան"], &["Հակոբյան", "Սարգսյան", "Գրիգորյան", "Պետրոսյան"], "hy"),
    (&["Oluwaseun", "Chidinma", "Ngozi", "Babátúndé"], &["Adéyẹmí", "Okonkwo-Nwosu", "Ọláwálé", "Eze"], "yo"),
];

const ORGANISATIONS: &[&str] = &[
    "Nilgiri Logistics",
    "Studio Rahayu",
    "Tessitura Ferràri",
    "北京晨光贸易",
    "Øresund Havn",
    "Καφέ Αθήνα",
    "مؤسسة النور",
    "Kulkarni & Sons",
];

const USER_AGENTS: &[&str] = &["Mozilla/5.0 (X11; Linux x86_64)", "okhttp/5.1", "JinaConnect-SDK/2.4 (python)"];

/// A fixed permutation-like mix, so that neighbouring people differ in everything.
fn mix(n: u64) -> u64 {
    let mut x = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Person number `n`, the same in every run; ids and addresses are unique for n below 10^9.
pub fn person(n: u64) -> Person {
    let m = mix(n);
    let pick = |list: &'static [&'static str], salt: u32| list[(m.rotate_left(salt) % list.len() as u64) as usize];
    let (given, family, handle) = NAMES[(n % NAMES.len() as u64) as usize];
    let mut name = format!("{} {}", pick(given, 7), pick(family, 19));
    if n.is_multiple_of(97) {
        // Some names are long: every part that a register office ever wrote down.
        name = format!("{name} {} {} von und zu {}", pick(given, 23), pick(family, 31), pick(family, 41));
    }
    let tag = if n % 10 == 3 { "+news" } else { "" };
    Person {
        id: format!("usr_{:016x}", mix(m)),
        name,
        email: format!("{handle}.{n:09}{tag}@example.com"),
        phone: format!("+99900{:09}", n % 1_000_000_000),
        organisation: pick(ORGANISATIONS, 3).to_owned(),
        ip: format!("2001:db8:{:x}:{:x}::{:x}", m & 0xffff, (m >> 16) & 0xffff, n & 0xffff),
        user_agent: pick(USER_AGENTS, 11).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn people_differ_and_stay_the_same() {
        let all: Vec<Person> = (0..1000).map(person).collect();
        assert_eq!(all.iter().map(|p| &p.id).collect::<HashSet<_>>().len(), 1000);
        assert_eq!(all.iter().map(|p| &p.email).collect::<HashSet<_>>().len(), 1000);
        assert!(all.iter().map(|p| &p.name).collect::<HashSet<_>>().len() > 200);
        assert!(all.iter().any(|p| p.name.chars().count() > 40) && all.iter().any(|p| p.email.contains('+')));
        assert_eq!(all[5], person(5));
    }
}
