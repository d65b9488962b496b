//! The three tenants that `quickstart` can load: their policies as they stand in `examples/tenants/`, and what the first of
//! their made-up people have besides a name: messages, invoices, posts, tokens. Nobody and nothing of it is real.

/// A value or an item of a person.
#[derive(Debug)]
pub struct Sample {
    pub purpose: &'static str,
    pub field: &'static str,
    pub text: &'static str,
    /// A consent that the person gives first.
    pub consent: bool,
}

/// By what the people of a tenant sign in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    Passwords,
    ApiKeys,
}

/// A tenant to try.
#[derive(Debug)]
pub struct SampleTenant {
    pub name: &'static str,
    pub policy: &'static str,
    /// For which people are stored and read.
    pub purpose: &'static str,
    /// For which the application is refused to read an e-mail address.
    pub refused: &'static str,
    /// Where its policy says that the data is: the node says so too.
    pub region: &'static str,
    /// They have passwords, or API keys.
    pub credentials: Option<Credentials>,
    /// What [`PEOPLE`] people have besides.
    pub samples: &'static [Sample],
}

/// Their names. Texts, like the global `--tenant` that `quickstart` has in its own way.
pub const NAMES: [&str; 3] = ["jina-connect", "jiwa-ai", "jenny-erp"];

/// How many people have samples.
pub const PEOPLE: usize = 10;

const fn of(purpose: &'static str, field: &'static str, text: &'static str) -> Sample {
    Sample { purpose, field, text, consent: false }
}

const JINA: SampleTenant = SampleTenant {
    name: "jina-connect",
    policy: include_str!("../../examples/tenants/jina-connect.toml"),
    purpose: "service",
    refused: "marketing",
    region: "",
    credentials: Some(Credentials::ApiKeys),
    samples: &[
        of("delivery", "message", "Your parcel is on its way and arrives tomorrow before noon."),
        of("delivery", "message", "Il codice di ritiro è disponibile nell'app."),
        of("delivery", "call_transcript", "Caller asks to move the appointment; moved to Friday."),
        of("payments", "payment_method", "upi-handle-4711"),
        of("payments", "invoice", "{\"number\":\"2026-0017\",\"amount\":\"1,180.00\",\"currency\":\"INR\"}"),
    ],
};

const JIWA: SampleTenant = SampleTenant {
    name: "jiwa-ai",
    policy: include_str!("../../examples/tenants/jiwa-ai.toml"),
    purpose: "sign_in",
    refused: "brand_analysis",
    region: "",
    credentials: None,
    samples: &[
        of("brand_analysis", "business_name", "Batik Lestari"),
        of("brand_analysis", "business_description", "Hand-drawn batik from a family workshop."),
        of("brand_analysis", "website_text", "Since three generations we draw every line by hand."),
        of("brand_analysis", "instagram_profile", "{\"handle\":\"@batik.example\",\"followers\":1204}"),
        of("brand_analysis", "product", "Scarf, silk, indigo"),
        of("content_generation", "prompt", "A calm morning scene with an indigo scarf"),
        of("content_generation", "post", "New today: indigo on silk. #batik"),
        of("connect", "instagram_token", "made-up-instagram-token"),
        Sample { purpose: "notifications", field: "phone", text: "+6281200000017", consent: true },
        of(
            "payments",
            "payment",
            "{\"transaction\":\"t-17\",\"package\":\"monthly\",\"amount\":\"149000\",\"status\":\"paid\"}",
        ),
    ],
};

const JENNY: SampleTenant = SampleTenant {
    name: "jenny-erp",
    policy: include_str!("../../examples/tenants/jenny-erp.toml"),
    purpose: "service",
    refused: "payments",
    region: "eu-central-1",
    credentials: Some(Credentials::Passwords),
    samples: &[
        of("service", "partner", "Filatura Esempio, Prato: carded wool yarns"),
        of("service", "fabric_sample", "Twill 2/2, wool, 310 g/m2, navy"),
        of("service", "order", "{\"article\":\"twill-310\",\"metres\":420,\"due\":\"2026-03-01\"}"),
        of("service", "device_kind", "tablet"),
        of("service", "usage_event", "opened the order list"),
        of("payments", "invoice", "{\"number\":\"F-2026-17\",\"amount\":\"4,210.00\",\"currency\":\"EUR\"}"),
    ],
};

impl SampleTenant {
    /// One of the three by name.
    pub fn of(name: &str) -> Option<&'static SampleTenant> {
        [&JINA, &JIWA, &JENNY].into_iter().find(|tenant| tenant.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Name, PolicyVersion};
    use crate::policy::compiled::Policy;
    use std::collections::HashSet;

    #[test]
    fn samples_fit_their_policies() {
        for tenant in [&JINA, &JIWA, &JENNY] {
            let (policy, _) =
                Policy::compile(tenant.policy, PolicyVersion(1), None).expect("shipped policies are right");
            let purpose =
                |name: &str| policy.purpose_by_name(&Name::parse("purpose", name).unwrap()).expect("a purpose");
            purpose(tenant.refused);
            let mut classes = HashSet::new();
            for sample in tenant.samples {
                let field = policy.field_by_name(&Name::parse("field", sample.field).unwrap()).expect("a field");
                assert!(purpose(sample.purpose).fields.has(field.no.0), "{} for {}", sample.field, sample.purpose);
                classes.insert(field.class);
            }
            assert!(classes.len() >= 2, "{}", tenant.name);
        }
    }
}
