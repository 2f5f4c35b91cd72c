"""python3 -m unittest discover deploy/demo/shop/payment"""

import unittest

from messages import ChargeRequest, DecodeError, ReadReply

# protoc --encode with order_id: "o-1", amount_cents: 1890, currency: "EUR"
KNOWN = bytes.fromhex("0a036f2d3110e20e1a03455552")


class Messages(unittest.TestCase):
    def test_known_bytes(self):
        message = ChargeRequest(order_id="o-1", amount_cents=1890, currency="EUR")
        self.assertEqual(message.encode(), KNOWN)
        self.assertEqual(ChargeRequest.decode(KNOWN).as_dict(), message.as_dict())

    def test_round_trip(self):
        for amount in (0, 1, 127, 128, -1, 2**63 - 1, -(2**63)):
            for accepted in (False, True):
                message = ReadReply(charge_id="c-é", order_id="", amount_cents=amount, accepted=accepted, created_ms=7)
                self.assertEqual(ReadReply.decode(message.encode()).as_dict(), message.as_dict())

    def test_unknown_fields_are_skipped(self):
        unknown = bytes.fromhex("f80601") + bytes.fromhex("fa0602ffff") + bytes.fromhex("fd0600000000")
        self.assertEqual(ChargeRequest.decode(unknown + KNOWN).order_id, "o-1")

    def test_every_cut_is_a_shorter_message_or_an_error(self):
        for cut in range(len(KNOWN)):
            try:
                self.assertNotEqual(ChargeRequest.decode(KNOWN[:cut]).as_dict(), ChargeRequest.decode(KNOWN).as_dict())
            except DecodeError:
                pass

    def test_bad_bytes(self):
        for text in ("0a05", "0a02ff80", "1a", "0b", "0801", "12016f", "10" + "ff" * 11):
            with self.assertRaises(DecodeError, msg=text):
                ChargeRequest.decode(bytes.fromhex(text))


if __name__ == "__main__":
    unittest.main()
