"""A first program: who am I, what is the schema, put, get, erase, receipt.

    pip install grpcio grpcio-tools
    python examples/python/first.py localhost:7443 CA_PEM APP_KEY_FILE DPO_KEY_FILE

`pii-vault quickstart` makes the server and the files. The stubs are generated from proto/ into a temporary directory.
"""

import sys
import tempfile
import uuid
from pathlib import Path

import grpc
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]


def stubs():
    """Generates the client from the proto files and imports it."""
    out = tempfile.mkdtemp()
    protos = sorted((ROOT / "proto").rglob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    failed = protoc.main(["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}", f"--python_out={out}",
                          f"--grpc_python_out={out}", *map(str, protos)])
    if failed:
        raise SystemExit("the proto files do not compile")
    sys.path.insert(0, out)


def main(server, ca, app_key, dpo_key):
    stubs()
    from pii.vault.v1 import access_service_pb2 as access, access_service_pb2_grpc as access_grpc
    from pii.vault.v1 import common_pb2 as common
    from pii.vault.v1 import erasure_service_pb2 as erasure, erasure_service_pb2_grpc as erasure_grpc
    from pii.vault.v1 import policy_service_pb2 as policy, policy_service_pb2_grpc as policy_grpc
    from pii.vault.v1 import record_service_pb2 as record, record_service_pb2_grpc as record_grpc

    channel = grpc.secure_channel(server, grpc.ssl_channel_credentials(Path(ca).read_bytes()))
    app = [("authorization", "Bearer " + Path(app_key).read_text().strip())]
    dpo = [("authorization", "Bearer " + Path(dpo_key).read_text().strip())]

    me = access_grpc.AccessServiceStub(channel).WhoAmI(access.WhoAmIRequest(), metadata=app)
    print("I am an access key of tenant", me.tenant)

    # Requests carry numbers; the schema has their names.
    schema = policy_grpc.PolicyServiceStub(channel).GetSchema(policy.GetSchemaRequest(), metadata=app)
    fields = {f.name: f.field_id for f in schema.fields}
    purposes = {p.name: p.purpose_id for p in schema.purposes}
    context = common.AccessContext(purpose_id=purposes["service"])

    subject = "usr_" + uuid.uuid4().hex
    key = common.SubjectKey(subject=subject)
    records = record_grpc.RecordServiceStub(channel)
    records.PutFields(record.PutFieldsRequest(
        subject=subject, context=context,
        values=[common.Value(field_id=fields["name"], text="Ana Öztürk"),
                common.Value(field_id=fields["email"], text=subject + "@example.com")]), metadata=app)

    got = records.GetFields(record.GetFieldsRequest(key=key, context=context), metadata=app)
    assert any(v.text == "Ana Öztürk" for v in got.values)
    print("read back", sum(v.WhichOneof("kind") is not None for v in got.values), "values")

    try:
        records.GetFields(record.GetFieldsRequest(
            key=key, select=common.Selector(field_ids=[fields["email"]]),
            context=common.AccessContext(purpose_id=purposes["marketing"])), metadata=app)
        raise SystemExit("a read for marketing was not refused")
    except grpc.RpcError as refused:
        assert refused.code() == grpc.StatusCode.PERMISSION_DENIED, refused
        print("for marketing:", refused.details())

    erasures = erasure_grpc.ErasureServiceStub(channel)
    erased = erasures.EraseSubject(erasure.EraseSubjectRequest(
        key=key, request_id=str(uuid.uuid4()), wait_final=True), metadata=dpo).erasure
    print("erased", len(erased.erased), "classes, receipt of", len(erased.receipt), "bytes")

    try:
        records.GetFields(record.GetFieldsRequest(key=key, context=context), metadata=app)
        raise SystemExit("the erased subject is still readable")
    except grpc.RpcError as gone:
        assert gone.code() == grpc.StatusCode.NOT_FOUND, gone
        print("a read now says", gone.code().name)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
