"""The payment service's protobuf messages, written by hand: proto3 wire format of strings, integers and booleans.

A message class lists its fields as {number: (name, kind)} with kind `string`, `int`, `bool` or `enum`.
Unknown fields are skipped, defaults are not written (protobuf encoding guide, "Message structure").

    service Payment {                       // package payment
      rpc Charge(ChargeRequest) returns (ChargeReply);
      rpc Read(ReadRequest) returns (ReadReply);
    }
"""


class DecodeError(ValueError):
    """The bytes are not this message."""


class Message:
    fields = {}

    def __init__(self, **values):
        for name, kind in self.fields.values():
            setattr(self, name, values.pop(name, "" if kind == "string" else False if kind == "bool" else 0))
        if values:
            raise TypeError(f"{type(self).__name__} has no field {next(iter(values))}")

    def as_dict(self):
        return {name: getattr(self, name) for name, _ in self.fields.values()}

    def encode(self):
        out = bytearray()
        for number, (name, kind) in self.fields.items():
            value = getattr(self, name)
            if not value:
                continue
            if kind == "string":
                data = value.encode()
                out += varint(number << 3 | 2) + varint(len(data)) + data
            else:
                out += varint(number << 3) + varint(int(value) & 0xFFFF_FFFF_FFFF_FFFF)
        return bytes(out)

    @classmethod
    def decode(cls, data):
        message, at = cls(), 0
        while at < len(data):
            tag, at = read_varint(data, at)
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                value, at = read_varint(data, at)
            elif wire in (1, 5):
                value, at = None, at + (8 if wire == 1 else 4)
            elif wire == 2:
                length, at = read_varint(data, at)
                value, at = bytes(data[at:at + length]), at + length
            else:
                raise DecodeError(f"field {number}: wire type {wire}")
            if at > len(data):
                raise DecodeError(f"field {number}: cut short")
            if number in cls.fields:
                name, kind = cls.fields[number]
                setattr(message, name, convert(number, kind, wire, value))
        return message


def convert(number, kind, wire, value):
    if (kind == "string") != (wire == 2) or value is None:
        raise DecodeError(f"field {number}: wire type {wire} is not {kind}")
    if kind == "string":
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"field {number}: not UTF-8") from error
    if kind == "bool":
        return value != 0
    return value - (1 << 64) if value >> 63 else value


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data, at):
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise DecodeError("varint cut short")
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise DecodeError("varint longer than ten bytes")


class ChargeRequest(Message):
    fields = {1: ("order_id", "string"), 2: ("amount_cents", "int"), 3: ("currency", "string")}


class ChargeReply(Message):
    fields = {1: ("charge_id", "string"), 2: ("accepted", "bool"), 3: ("instance", "string")}


class ReadRequest(Message):
    fields = {1: ("order_id", "string")}


class ReadReply(Message):
    fields = {1: ("charge_id", "string"), 2: ("order_id", "string"), 3: ("amount_cents", "int"),
              4: ("currency", "string"), 5: ("accepted", "bool"), 6: ("created_ms", "int")}


class HealthCheckRequest(Message):
    """grpc.health.v1"""
    fields = {1: ("service", "string")}


class HealthCheckResponse(Message):
    """grpc.health.v1; status 1 is SERVING, 2 is NOT_SERVING"""
    fields = {1: ("status", "enum")}
