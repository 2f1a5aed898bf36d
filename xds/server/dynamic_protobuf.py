"""Protobuf messages that are declared as tables and run at C speed (upb) in a private descriptor pool.

Only the fields that this server reads or writes are declared. All others are unknown fields. The private pool keeps
these partial declarations apart from complete generated ones in the same process.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
)

# A message whose fields are known only at run time, or the class of one.
Dynamic = Any
Fields = Mapping[str, tuple[int, str]]

_SCALARS = {
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,
    "uint32": descriptor_pb2.FieldDescriptorProto.TYPE_UINT32,
}
_WELL_KNOWN = (any_pb2, duration_pb2, struct_pb2, timestamp_pb2)
_MAP = "map<string,string>"


class Schema:
    """A private descriptor pool that is filled table by table."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        for module in _WELL_KNOWN:
            self._pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)

    def declare(self, package: str, messages: Mapping[str, Fields]) -> None:
        """Add the messages of one package.

        Args:
            package: the protobuf package, at most one call for each.
            messages: message name -> field name -> (number, type). A type is ``string``, ``bytes``, ``bool``,
                ``int32``, ``uint32``, ``map<string,string>`` or the full name of a message or (as ``int32``) an
                enum; ``repeated`` may stand before it.
        """
        file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
        file.dependency.extend(module.DESCRIPTOR.name for module in _WELL_KNOWN)
        file.dependency.extend(sorted(self._packages_named_in(messages, package)))
        for name, fields in messages.items():
            message = file.message_type.add(name=name)
            for field, (number, kind) in fields.items():
                _add_field(message, f"{package}.{name}", field, number, kind)
        self._pool.AddSerializedFile(file.SerializeToString())

    def message(self, full_name: str) -> Dynamic:
        """The class of a declared message."""
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(full_name))

    @staticmethod
    def _packages_named_in(messages: Mapping[str, Fields], package: str) -> set[str]:
        kinds = {kind.removeprefix("repeated ") for fields in messages.values() for _, kind in fields.values()}
        packages = {kind.rpartition(".")[0] for kind in kinds if "." in kind}
        return {f"{name}.proto" for name in packages - {package, "google.protobuf"}}


def _add_field(message: descriptor_pb2.DescriptorProto, full_name: str, field: str, number: int, kind: str) -> None:
    kind, repeated = kind.removeprefix("repeated "), kind.startswith("repeated ")
    proto = message.field.add(name=field, number=number)
    proto.label = proto.LABEL_REPEATED if repeated else proto.LABEL_OPTIONAL
    if kind == _MAP:
        entry = message.nested_type.add(name=field.title().replace("_", "") + "Entry")
        entry.options.map_entry = True
        _add_field(entry, "", "key", 1, "string")
        _add_field(entry, "", "value", 2, "string")
        proto.label = proto.LABEL_REPEATED
        proto.type, proto.type_name = proto.TYPE_MESSAGE, f".{full_name}.{entry.name}"
    elif kind in _SCALARS:
        proto.type = _SCALARS[kind]
    else:
        proto.type, proto.type_name = proto.TYPE_MESSAGE, f".{kind}"
