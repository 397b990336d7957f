"""The suite's own judgement: `python3 -m unittest discover tests/interop`. Needs no client and no server."""
import json
import struct
import tempfile
import unittest
from pathlib import Path

import admin
import compare
import record
import remoting
import table


def line(n, **members):
    return {"body": f"b-{n}", "n": n, "id": f"ID{n}", "queue": n % 2, "offset": n // 2, **members}


class Compare(unittest.TestCase):
    def setUp(self):
        self.sent = [line(n) for n in range(6)]

    def test_agreement(self):
        self.assertEqual(compare.exactly_once(self.sent, list(reversed(self.sent))), [])
        self.assertEqual(compare.one_value_per_place(self.sent) + compare.deliveries_in_order(self.sent), [])

    def test_what_one_side_does_not_tell_is_not_held_against_it(self):
        silent = [{"body": sent["body"]} for sent in self.sent]
        self.assertEqual(compare.exactly_once(silent, self.sent) + compare.exactly_once(self.sent, silent), [])

    def test_loss(self):
        self.assertIn("1 sent but not consumed: b-3", compare.exactly_once(self.sent, [x for x in self.sent if x["n"] != 3]))

    def test_repetition(self):
        self.assertEqual(compare.exactly_once(self.sent, self.sent + [line(2)]), ["1 consumed more than once: b-2 (2 times)"])
        self.assertEqual(compare.at_least_once(self.sent, self.sent + [line(2)]), [])

    def test_invention(self):
        self.assertEqual(compare.exactly_once(self.sent, self.sent + [line(9)]), ["1 consumed but never sent: b-9"])

    def test_other_id_or_place(self):
        for name in ("id", "queue", "offset"):
            received = self.sent[:5] + [line(5, **{name: 77})]
            self.assertEqual(len(compare.exactly_once(self.sent, received)), 1, name)

    def test_two_values_at_one_place(self):
        self.assertEqual(len(compare.one_value_per_place(self.sent + [line(8, queue=0, offset=0)])), 1)

    def test_order(self):
        swapped = [self.sent[2], self.sent[0]]
        self.assertEqual(len(compare.deliveries_in_order(swapped)), 1)
        self.assertEqual(len(compare.shards_in_order(swapped, 2)), 1)
        self.assertEqual(len(compare.shards_in_order([line(0), line(2, queue=1)], 2)), 1)

    def test_labels(self):
        received = [line(1, tag="A", keys="k")]
        self.assertEqual(compare.as_labelled(received, lambda n: ("A", "k")), [])
        self.assertEqual(len(compare.as_labelled(received, lambda n: ("B", "k"))), 1)

    def test_delays(self):
        sent, received = [line(1, at=1000)], [line(1, at=6000)]
        self.assertEqual(compare.delays(sent, received, 5000, 9000), [])
        self.assertEqual(len(compare.delays(sent, received, 5001, 9000)), 1)
        self.assertEqual(len(compare.delays(sent, received, 4000, 4999)), 1)

    def test_retries(self):
        received = [line(1, retry=attempt) for attempt in (0, 1, 2)]
        self.assertEqual(compare.retried(received, 2), [])
        self.assertEqual(len(compare.retried(received[:2], 2)), 1)
        self.assertEqual(compare.retried(received[:2], 2, every=False), [])
        self.assertEqual(len(compare.retried(received + received[:1], 2, every=False)), 1)
        self.assertEqual(len(compare.retried(received, 1, every=False)), 1)

    def test_tries(self):
        self.assertEqual(compare.tried([line(1, retry=3), line(2, retry=3)], 3), [])
        self.assertEqual(compare.tried([line(1, retry=2), line(2, retry=3)], 3), ["1 not tried 3 times: b-1 (2)"])


    def test_traces(self):
        bodies = ["Pub\x011\x01region\x01g\x01t\x01ID1\x01\x02SubBefore\x011\x01region\x01g\x01request\x01ID2\x010\x01\x02",
                  "SubAfter\x01request\x01ID2\x013\x01true\x02Pub\x01cut short"]
        self.assertEqual(compare.traced(bodies), {"Pub": {"ID1"}, "SubBefore": {"ID2"}, "SubAfter": {"ID2"}})
        self.assertEqual(compare.traced([]), {"Pub": set(), "SubBefore": set(), "SubAfter": set()})


class Table(unittest.TestCase):
    def test_differences(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "table.md"
            path.write_text("| case | a | b |\n| --- | --- | --- |\n| x | pass | client lacks it: f |\n")
            self.assertEqual(table.differences(path, {"a": {"x": "pass"}, "b": {"x": table.lacks("f")}}), [])
            self.assertEqual(len(table.differences(path, {"a": {"x": "FAIL"}})), 1)
            self.assertEqual(len(table.differences(path, {"b": {"y": "pass"}})), 2, "one that is not told, one that did not run")
            self.assertEqual(table.differences(path, {"a": {}}, wanted=lambda column, row: row != "x"), [])


class Columns(unittest.TestCase):
    TEXT = "#Broker Name  #QID  #Max Offset\nbroker-a      1     7\nbroker-a      0     3\n\nTPS: 1\n"

    def test_by_name(self):
        self.assertEqual(admin.columns(self.TEXT, "QID", "Max Offset"), [("0", "3"), ("1", "7")])
        self.assertRaises(admin.Failed, admin.columns, self.TEXT, "Diff")
        self.assertRaises(admin.Failed, admin.columns, "usage: mqadmin", "QID")


class Record(unittest.TestCase):
    @staticmethod
    def frame(header, serialization=0):
        return struct.pack(">iI", 4 + len(header), serialization << 24 | len(header)) + header

    def test_kinds(self):
        def of(**header):
            return record.kind(self.frame(json.dumps({"code": 10, "flag": 0, "language": "GO", **header}).encode()))

        self.assertEqual(of(extFields={"a": "1"}), of(extFields={"a": "2"}))
        self.assertNotEqual(of(extFields={"a": "1"}), of(extFields={"b": "1"}))
        self.assertIsNone(of(flag=1))
        self.assertIsNone(of(language=remoting.LANGUAGE))

    def test_binary_header(self):
        fields = b"\x00\x01a\x00\x00\x00\x02xy" + b"\x00\x01b\x00\x00\x00\x00"
        header = struct.pack(">hBhiiii", 310, 0, 478, 7, 0, 0, len(fields)) + fields
        self.assertEqual(record.kind(self.frame(header, record.ROCKETMQ)), (310, record.ROCKETMQ, ("a", "b")))


class Fastjson(unittest.TestCase):
    def test_integer_keys(self):
        self.assertEqual(remoting.from_fastjson(b'{"brokerAddrs":{0:"127.0.0.1:1",\n 12:"h"}}'),
                         {"brokerAddrs": {"0": "127.0.0.1:1", "12": "h"}})


if __name__ == "__main__":
    unittest.main()
