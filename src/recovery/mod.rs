//! Floor 5, beside the vault: archives of the data, and getting everyone living back from them. Sees the vault; the
//! vault does not see it.

pub mod layout;
