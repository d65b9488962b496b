//! Checks that use something up: a code, a step of an app, a try. Each is one commit with its audit entry, whatever comes
//! out, so that neither the answer nor its time tells a user who is not there from one who typed something wrong.

use super::{Draft, Edit, Verdict, Why};
use crate::access::Verb;
use crate::audit::{Action, Outcome};
use crate::ids::FieldNo;
use crate::storage::{ChangeSet, SubjectSnapshot, SubjectState};
use crate::vault::Vault;
use crate::vault::call::{Call, Context};
use crate::vault::error::VaultError;
use crate::vault::find::Key;

impl Vault {
    /// Lets `decide` compare what was typed with a subject's credential, and commits what becomes of it. Checks of one
    /// subject take turns, so of several with one right code exactly one hears OK.
    ///
    /// # Errors
    /// What `decide` answers; `Busy` and the like of the store. A check that did not commit was none.
    pub(super) async fn check_credential(
        &self,
        call: &Call,
        context: &Context,
        key: &Key,
        field: FieldNo,
        action: Action,
        mut decide: impl FnMut(&SubjectSnapshot, Option<&[u8]>) -> Result<(Edit, Verdict), VaultError>,
    ) -> Result<Verdict, VaultError> {
        self.credential_rules(call)?;
        let Some(holder) = self.credential_holder(call, context, key, Verb::Verify).await? else {
            return self.check_nobody(call, action).await;
        };
        let mut verdict = Verdict::No(Why::Unknown);
        let compare = |snapshot: &SubjectSnapshot, there: Option<&[u8]>, draft: &mut Draft| {
            let (edit, found) = match snapshot.subject.state {
                SubjectState::Live => decide(snapshot, there)?,
                _ => (Edit::Note, Verdict::No(Why::Unknown)),
            };
            draft.entry.outcome = if found == Verdict::Ok { Outcome::Ok } else { Outcome::Denied };
            verdict = found;
            Ok((edit, ()))
        };
        match self.edit_credential_of(call, holder.subject.uid, field, action, None, compare).await {
            Ok(()) => Ok(verdict),
            // It was erased in between.
            Err(VaultError::NotFound | VaultError::SubjectErased) => self.check_nobody(call, action).await,
            Err(error) => Err(error),
        }
    }

    async fn check_nobody(&self, call: &Call, action: Action) -> Result<Verdict, VaultError> {
        let mut change = ChangeSet::default();
        change.note(call.tenant.no, call.record(action, Outcome::Denied).to_bytes());
        self.store.commit(change).await?;
        Ok(Verdict::No(Why::Unknown))
    }
}
