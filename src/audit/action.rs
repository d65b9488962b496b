//! The closed lists of what an audit record can say: actions and outcomes, with numbers and names that never change.

macro_rules! closed_list {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $number,)* }
        impl $name {
            /// Every member, in order of number.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The permanent number; it takes one byte.
            pub const fn number(self) -> u8 {
                self as u8
            }
            /// The permanent name.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
            /// The member of that number, if there is one.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some($name::$variant),)* _ => None }
            }
            /// The member of that name, if there is one.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($text => Some($name::$variant),)* _ => None }
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

closed_list! {
    /// What was done. Numbers are part of the stored format: add at the end of a block, never renumber or reuse.
    Action {
        // Values, 1 to 15.
        GetFields = 1, "fields.get";
        PutFields = 2, "fields.put";
        DeleteFields = 3, "fields.delete";
        AppendItems = 4, "items.append";
        ListItems = 5, "items.list";
        GetItem = 6, "items.get";
        DeleteItems = 7, "items.delete";
        ExportSubject = 8, "subject.export";
        // Subjects and groups, 16 to 31.
        GetSubject = 16, "subject.get";
        ListSubjects = 17, "subject.list";
        FindSubjects = 18, "subject.find";
        CloseSubject = 19, "subject.close";
        ReopenSubject = 20, "subject.reopen";
        TouchSubject = 21, "subject.touch";
        CreateGroup = 22, "group.create";
        GetGroup = 23, "group.get";
        ListGroups = 24, "group.list";
        UpdateGroup = 25, "group.update";
        ListGroupSubjects = 26, "group.subjects";
        CloseGroup = 27, "group.close";
        // Erasure and holds, 32 to 55.
        EraseRequested = 32, "erase.accepted";
        EraseCommitted = 33, "erase.committed";
        Erased = 34, "erase.erased";
        PreviewErasure = 35, "erase.preview";
        ScheduleErasure = 36, "erase.scheduled";
        CancelErasure = 37, "erase.cancelled";
        GetErasure = 38, "erase.get";
        ListErasures = 39, "erase.list";
        GetReceipt = 40, "receipt.get";
        WatchErasures = 41, "erase.watch";
        PlaceHold = 42, "hold.placed";
        ReleaseHold = 43, "hold.released";
        ListHolds = 44, "hold.list";
        BucketExpired = 45, "expiry.dropped";
        RowsSwept = 46, "expiry.swept";
        Resealed = 47, "expiry.resealed";
        RetentionEnded = 48, "retention.ended";
        // Who may call, 56 to 71.
        IssueAccessKey = 56, "access_key.issued";
        RotateAccessKey = 57, "access_key.rotated";
        RevokeAccessKey = 58, "access_key.revoked";
        ListAccessKeys = 59, "access_key.list";
        CreateRole = 60, "role.created";
        UpdateRole = 61, "role.updated";
        ListRoles = 62, "role.list";
        RequestApproval = 63, "approval.requested";
        Approve = 64, "approval.granted";
        DenyApproval = 65, "approval.denied";
        UseApproval = 66, "approval.used";
        ListApprovals = 67, "approval.list";
        TestAccess = 68, "access.test";
        WhoAmI = 69, "access.who_am_i";
        MarkDecoy = 70, "decoy.marked";
        UnmarkDecoy = 71, "decoy.unmarked";
        // Tenants and policy, 72 to 87.
        CreateTenant = 72, "tenant.created";
        GetTenant = 73, "tenant.get";
        ListTenants = 74, "tenant.list";
        UpdateTenant = 75, "tenant.updated";
        EraseTenant = 76, "tenant.erased";
        AdvanceClock = 77, "tenant.clock_advanced";
        GetUsage = 78, "tenant.usage";
        LintPolicy = 80, "policy.lint";
        ApplyPolicy = 81, "policy.applied";
        GetPolicy = 82, "policy.get";
        GetSchema = 83, "policy.schema";
        ReportPromises = 84, "policy.report";
        PlanPolicy = 85, "policy.plan";
        DiffPolicies = 86, "policy.diff";
        // Audit and operations, 88 to 103.
        ListEntries = 88, "audit.list";
        FollowEntries = 89, "audit.follow";
        VerifyAudit = 90, "audit.verified";
        Checkpoint = 91, "audit.checkpoint";
        PruneAudit = 92, "audit.pruned";
        ReportAccess = 93, "audit.report";
        /// Somebody read a person who is a decoy; the entry of the read itself is before it.
        DecoyRead = 94, "decoy.read";
        ListDecoys = 95, "decoy.list";
        GetOperation = 96, "operation.get";
        ListOperations = 97, "operation.list";
        PauseOperation = 98, "operation.paused";
        ResumeOperation = 99, "operation.resumed";
        CancelOperation = 100, "operation.cancelled";
        WatchOperation = 101, "operation.watch";
        GetClock = 102, "clock.get";
        Evidence = 103, "audit.evidence";
        // The vault itself, 104 to 127.
        Start = 104, "vault.started";
        Stop = 105, "vault.stopped";
        ClockJump = 106, "vault.clock_jump";
        ClockConfirmed = 107, "vault.clock_confirmed";
        DataLoss = 108, "vault.data_loss";
        Refused = 109, "vault.refused";
        RotateKeys = 110, "keys.rotated";
        RetireReplica = 111, "keeper.replica_retired";
        Backup = 112, "backup.written";
        Restore = 113, "backup.restored";
        RollbackAccepted = 114, "vault.rollback_accepted";
        ListRotations = 115, "keys.rotations";
        Compromised = 116, "keys.compromised";
        /// A key that had touched as many people as it may counts from nothing again.
        ReleaseAccessKey = 118, "access_key.released";
        // Credentials of the tenant's users, 128 to 159.
        SetPassword = 128, "password.set";
        VerifyPassword = 129, "password.verified";
        ChangePassword = 130, "password.changed";
        RemovePassword = 131, "password.removed";
        UnlockPassword = 132, "password.unlocked";
        ImportPassword = 133, "password.imported";
        RehashPassword = 134, "password.rehashed";
        ReportCredentials = 135, "credentials.report";
        IssueApiKey = 136, "api_key.issued";
        VerifyApiKey = 137, "api_key.verified";
        RotateApiKey = 138, "api_key.rotated";
        RevokeApiKey = 139, "api_key.revoked";
        ListApiKeys = 140, "api_key.list";
        IssueCode = 141, "code.issued";
        VerifyCode = 142, "code.verified";
        IssueRecoveryCodes = 143, "recovery_codes.issued";
        EnrolTotp = 144, "totp.enrolled";
        ConfirmTotp = 145, "totp.confirmed";
        VerifyTotp = 146, "totp.verified";
        RemoveTotp = 147, "totp.removed";
        // What people decide and ask for, 160 to 175.
        GrantConsent = 160, "consent.granted";
        WithdrawConsent = 161, "consent.withdrawn";
        RecordObjection = 162, "objection.recorded";
        EndObjection = 163, "objection.ended";
        Restrict = 164, "restriction.recorded";
        EndRestriction = 165, "restriction.ended";
        GetRights = 166, "rights.get";
        OpenRequest = 167, "request.opened";
        CloseRequest = 168, "request.closed";
        ListRequests = 169, "request.list";
        ListDisclosures = 170, "disclosure.list";
        AcknowledgeErasure = 171, "erasure.acknowledged";
        SetNominee = 172, "nominee.set";
        RemoveNominee = 173, "nominee.removed";
        ActAsNominee = 174, "nominee.acted";
        Aggregate = 175, "aggregate";
    }
}

closed_list! {
    /// How it ended.
    Outcome {
        Ok = 0, "ok";
        /// A part of what was asked for was not permitted or not there, and the caller accepted that.
        Partial = 1, "partial";
        /// A rule said no: no grant, wrong purpose, no approval.
        Denied = 2, "denied";
        NotFound = 3, "not_found";
        Erased = 4, "erased";
        /// A hold or the state of the subject forbade it.
        Held = 5, "held";
        /// The request did not have the form it must have.
        Invalid = 6, "invalid";
        Conflict = 7, "conflict";
        /// A stored value did not open: tampering or damage.
        DataLoss = 8, "data_loss";
        /// Anything of ours that failed: storage, keys, time.
        Failed = 9, "failed";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_read_back() {
        let mut names = std::collections::HashSet::new();
        for &a in Action::ALL {
            assert_eq!(Action::from_number(a.number()), Some(a));
            assert_eq!(Action::from_name(a.name()), Some(a));
            assert!(names.insert(a.name()), "{a}");
        }
        for &o in Outcome::ALL {
            assert!(o.number() < 16, "four bits of a record's flags");
            assert_eq!(Outcome::from_number(o.number()), Some(o));
            assert_eq!(Outcome::from_name(o.name()), Some(o));
        }
        assert_eq!(Action::from_number(255), None);
    }
}
