"""--map-uid, --map-gid: their text, and requests under a map."""
import os
import struct

import pytest
from test_callers import EACCES, getattr_of, request, root, serve

from passthru.errors import UsageError
from passthru.idmap import NO_ID, IdMap, Pair, parse, text_of
from passthru.options import parse as parse_options

NAMES = {"alice": 1000, "bob": 2000}
EOVERFLOW = -75
SETATTR = 4
FATTR_UID, FATTR_GID = 2, 4


@pytest.mark.parametrize("text, means", [
    ("", IdMap(())),
    ("0:1000", IdMap((Pair(0, 1000, 1),))),
    ("alice:bob", IdMap((Pair(1000, 2000, 1),))),
    ("0:100000:65536+70000:5", IdMap((Pair(0, 100000, 65536), Pair(70000, 5, 1)))),
    ("all:65534", IdMap((), 65534)),
    ("1000:all", IdMap((), NO_ID, 1000)),
    ("0:1000+all:65534+5:all", IdMap((Pair(0, 1000, 1),), 65534, 5)),
    ("0:1+1:0", IdMap((Pair(0, 1, 1), Pair(1, 0, 1)))),
    ("0:4294967294", IdMap((Pair(0, NO_ID - 1, 1),))),
])
def test_text(text, means):
    assert parse(text, NAMES.__getitem__) == means
    assert parse(text_of(means), NAMES.__getitem__) == means


@pytest.mark.parametrize("text, message", [
    ("5", "is not MOUNT:SOURCE"), (":5", "is not"), ("5:", "is not"), ("all:all", "is not"), ("0:1+", "is not"),
    ("carol:1", "neither an id nor a name"), ("-1:0", "out of range"), ("0:4294967295", "out of range"),
    ("0:0:0", "not a count"), ("0:0:x", "not a count"), ("0:0:4294967295", "not a count"),
    ("2:0:4294967294", "beyond the last id"), ("all:5:2", "has no count"), ("all:5+all:6", "already"),
    ("5:all+6:all", "already"), ("0:10:5+4:20", "ids of the mount"), ("0:10:5+5:14", "ids of the source"),
    ("+".join(f"{n}:{n}" for n in range(65)), "more than 64"),
])
def test_bad_text(text, message):
    with pytest.raises(UsageError, match=message):
        parse(text, NAMES.__getitem__)


def test_given_more_than_once():
    o = parse_options(["--map-uid", "0:1000", "--map-uid=1000:0", "-o", "map_gid=1:2,map_gid=all:3", "/s", "/m"])
    assert o.map_uid == "0:1000+1000:0" and o.map_gid == "1:2+all:3"
    with pytest.raises(UsageError, match=r"^--map-uid: '1:1000': another pair already has some of .* of the source$"):
        parse_options(["--map-uid", "0:1000", "--map-uid", "1:1000", "/s", "/m"])
    with pytest.raises(UsageError, match=r"^-o map_uid: 'x' is neither"):
        parse_options(["-o", "map_uid=x:y", "/s", "/m"])


def serve_mapped(*requests, uids: str, gids: str = "", **options):
    m = []
    for text in (uids, gids):
        pairs, act, show = parse(text, NAMES.__getitem__)
        m.append(([tuple(p) for p in pairs], act, show))
    return serve(*requests, maps=m, **options)


def owners(reply: bytes) -> tuple[int, int]:
    """Owner and group in a GETATTR reply."""
    return struct.unpack_from("=II", reply, 16 + 68)


ME = os.geteuid()


@pytest.mark.parametrize("uids, shown", [
    ("", ME), (f"5:{ME}", 5), (f"5:{ME}+6:7", 5), (f"{ME}:77777", NO_ID), (f"{ME}:77777+9:all", 9),
    ("9:all", 9), ("all:9", ME), (f"{ME + 5}:{ME}:3", ME + 5),
])
def test_shown_owner(uids, shown):
    ((result, _, reply),) = serve_mapped(getattr_of(0), uids=uids, reply=True)
    assert result == 104 and owners(reply)[0] == shown


def chown(uid: int) -> tuple[bytes, bytes]:
    return request(SETATTR, struct.pack("=II", FATTR_UID, 0).ljust(76, b"\0") + struct.pack("=III", uid, 0, 0))


@root
@pytest.mark.parametrize("uids, to, stored", [
    ("5:6", 5, 6), ("5:6", 6, None), ("5:6", 7, 7), ("all:9", 7, 9), ("5:6+all:9", 6, 9),
])
def test_chown(uids, to, stored):
    ((result, _, _, owner),) = serve_mapped(chown(to), uids=uids, identity=True, reply=True, owner=True)
    if stored is None:
        assert result == EOVERFLOW and owner == ME
    else:
        assert result == 104 and owner == stored


def test_who_is_let_in_is_a_question_of_the_mounts_ids():
    results = serve_mapped(getattr_of(54321), getattr_of(0), uids=f"54321:{ME}+0:77777", own_and_root=True)
    assert [n for n, *_ in results] == [EACCES if ME != 54321 else 104, 104]


