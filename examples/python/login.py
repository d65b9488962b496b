"""A worked login: sign-up, e-mail code, login, lock and unlock, change, a bcrypt user upgraded at login, an API key checked
in the path of a request, and all of it gone with the person.

    pip install grpcio grpcio-tools
    python examples/python/login.py localhost:7443 CA_PEM APP_KEY_FILE DPO_KEY_FILE

`pii-vault quickstart` makes the server and the files. The stubs are generated from proto/ into a temporary directory.
"""

import sys
import uuid
from pathlib import Path

import grpc

from first import stubs

# Of the password "correct horse battery staple", as another system kept it (bcrypt, Python).
OLD_HASH = "$2b$04$abcdefghijklmnopqrstuu7EJV7kdjBBQxyb0HjTh9KS7.Lah/6CG"


def main(server, ca, app_key, dpo_key):
    stubs()
    from pii.vault.v1 import common_pb2 as common
    from pii.vault.v1 import credential_service_pb2 as c, credential_service_pb2_grpc as c_grpc
    from pii.vault.v1 import erasure_service_pb2 as erasure, erasure_service_pb2_grpc as erasure_grpc
    from pii.vault.v1 import policy_service_pb2 as policy, policy_service_pb2_grpc as policy_grpc
    from pii.vault.v1 import record_service_pb2 as record, record_service_pb2_grpc as record_grpc

    channel = grpc.secure_channel(server, grpc.ssl_channel_credentials(Path(ca).read_bytes()))
    app = [("authorization", "Bearer " + Path(app_key).read_text().strip())]
    dpo = [("authorization", "Bearer " + Path(dpo_key).read_text().strip())]
    login = c_grpc.CredentialServiceStub(channel)
    schema = policy_grpc.PolicyServiceStub(channel).GetSchema(policy.GetSchemaRequest(), metadata=app)
    fields = {f.name: f.field_id for f in schema.fields}
    service = common.AccessContext(purpose_id={p.name: p.purpose_id for p in schema.purposes}["service"])

    def sign_up():
        subject = "usr_" + uuid.uuid4().hex
        record_grpc.RecordServiceStub(channel).PutFields(record.PutFieldsRequest(
            subject=subject, context=service,
            values=[common.Value(field_id=fields["email"], text=subject + "@example.com")]), metadata=app)
        return common.SubjectKey(subject=subject)

    def verify(key, password, source=b"198.51.100.7"):
        return login.VerifyPassword(
            c.VerifyPasswordRequest(key=key, password=password.encode(), source=source), metadata=app)

    # Sign-up: the person, a password, and a code that proves the address.
    jane = sign_up()
    login.SetPassword(c.SetPasswordRequest(key=jane, password=b"a quiet green harbour"), metadata=app)
    code = login.IssueCode(c.IssueCodeRequest(key=jane, use="confirm"), metadata=app).text
    typed = c.VerifyCodeRequest(key=jane, use="confirm", text=code)
    assert login.VerifyCode(typed, metadata=app).verdict == c.VERDICT_OK
    assert login.VerifyCode(typed, metadata=app).verdict == c.VERDICT_NO
    print("signed up; the code of", len(code), "characters worked once")

    # Login. A wrong password, a locked account and nobody are one answer to keys without the verb `credential`; this key
    # has it, so it is told which.
    assert verify(jane, "a quiet green harbour").verdict == c.VERDICT_OK
    for _ in range(9):
        no = verify(jane, "a guess", source=b"203.0.113.9")
        assert no.verdict == c.VERDICT_NO
        if no.detail == c.VERDICT_DETAIL_LOCKED:
            break
    else:
        raise SystemExit("nine guesses in a row were looked at")
    print("after some guesses the next one waits", no.retry_after_s, "s")
    # Jane came in from her own address before, so a stranger's guesses do not lock her out there.
    assert verify(jane, "a quiet green harbour").verdict == c.VERDICT_OK
    login.UnlockPassword(c.UnlockPasswordRequest(key=jane), metadata=app)
    changed = login.ChangePassword(c.ChangePasswordRequest(
        key=jane, password=b"a quiet green harbour", new_password=b"a loud red mountain"), metadata=app)
    assert changed.verdict == c.VERDICT_OK
    print("unlocked and changed")

    # Somebody who comes from the old system: nobody has to reset a password.
    joe = sign_up()
    taken = login.ImportPassword(c.ImportPasswordRequest(key=joe, hash=OLD_HASH), metadata=app)
    again = c.ImportPasswordRequest(key=joe, hash=OLD_HASH)
    assert taken.imported and not login.ImportPassword(again, metadata=app).imported
    assert verify(joe, "correct horse battery staple").verdict == c.VERDICT_OK
    report = login.ReportCredentials(c.ReportCredentialsRequest(), metadata=app)
    kept = sorted({count.algorithm for count in report.counts if count.kind == "password"})
    assert kept == ["argon2id"], kept
    print("a", taken.algorithm, "hash was upgraded at its login; passwords are kept as", kept)

    # An API key, and the path of a request that checks it.
    issued = login.IssueApiKey(c.IssueApiKeyRequest(key=jane, label="nightly export", scope_ids=[3]), metadata=app)

    def serve(authorization):
        found = login.VerifyApiKey(c.VerifyApiKeyRequest(text=authorization.removeprefix("Bearer ")), metadata=app)
        if found.verdict != c.VERDICT_OK:
            return 401
        return 200 if 3 in found.scope_ids and found.subject == jane.subject else 403

    assert serve("Bearer " + issued.text) == 200 and serve("Bearer " + issued.text[:-1]) == 401
    print("an API key opens a request:", issued.text.split("_")[0] + "_...")

    # The person goes, and with her every way in.
    erasure_grpc.ErasureServiceStub(channel).EraseSubject(erasure.EraseSubjectRequest(
        key=jane, request_id=str(uuid.uuid4()), wait_final=True), metadata=dpo)
    assert serve("Bearer " + issued.text) == 401
    gone = verify(jane, "a loud red mountain")
    assert gone.verdict == c.VERDICT_NO and gone.detail == c.VERDICT_DETAIL_UNKNOWN
    print("erased: password and API key say", c.Verdict.Name(gone.verdict))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
