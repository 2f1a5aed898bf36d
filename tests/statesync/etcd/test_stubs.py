"""The generated messages belong to etcd.proto, and run with every protobuf that we allow."""

import re
from pathlib import Path

from understudy.statesync.etcd import etcd_pb2

FOLDER = Path(etcd_pb2.__file__).parent
MESSAGE = re.compile(r"^message (\w+) \{(.*?)^\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"^ +(?:repeated )?[\w.]+ (\w+) = (\d+);", re.MULTILINE)


def test_the_stubs_are_generated_from_the_present_proto() -> None:
    source = (FOLDER / "etcd.proto").read_text()
    written = {
        name: {field: int(number) for field, number in FIELD.findall(body)} for name, body in MESSAGE.findall(source)
    }
    generated = {
        name: {field.name: field.number for field in message.fields}
        for name, message in etcd_pb2.DESCRIPTOR.message_types_by_name.items()
    }

    assert written == generated, "run make etcd-stubs"


def test_the_generated_code_does_not_insist_on_one_major_version_of_protobuf() -> None:
    assert "ValidateProtobufRuntimeVersion" not in (FOLDER / "etcd_pb2.py").read_text()
