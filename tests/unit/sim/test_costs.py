"""Costs of layers: the file, its mistakes, and what is drawn for a function."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path

import pytest

from rewarm.errors import BadDefinition
from rewarm.facts.function import LangKey
from rewarm.sim import costs
from rewarm.sim.costs import DEFAULTS, MB, Draw, LangCosts

FULL = """
[bare]
startup_s = 0.25
resident_mb = 4

[lang.python]
share = 3
startup_s = 0.5
resident_mb = 20
fork_s = 0.01

[lang.nodejs]
share = 1
startup_s = 0.3
resident_mb = 40

[user]
startup_s = { median = 2.0, sigma = 0.5 }
resident_mb = 100

[user.nodejs]
startup_s = 0.125
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "costs.toml"
    path.write_text(text, "utf-8")
    return path


def test_a_full_file(tmp_path: Path) -> None:
    found = costs.read(write(tmp_path, FULL))
    assert (found.bare_s, found.bare_bytes) == (0.25, 4 * MB)
    assert found.langs == {
        "python": LangCosts(0.5, 20 * MB, 3.0, 0.01, True),
        "nodejs": LangCosts(0.3, 40 * MB, 1.0, 0.0, False),
    }
    assert found.user[""].startup_s == Draw(2.0, 0.5)
    assert found.user["nodejs"].startup_s == Draw(0.125)
    assert found.user["nodejs"].resident_bytes == Draw(100 * MB)  # as [user] says


def test_what_a_file_leaves_out_is_the_default(tmp_path: Path) -> None:
    assert costs.read(write(tmp_path, "")) == DEFAULTS
    found = costs.read(write(tmp_path, "[bare]\nstartup_s = 1\n"))
    assert (found.bare_s, found.bare_bytes, found.langs) == (1.0, DEFAULTS.bare_bytes, DEFAULTS.langs)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[snapshot]\nstartup_s = 1", "unknown layer 'snapshot'; use bare, lang, user"),
        ("[bare]\nseconds = 1", "unknown key 'bare.seconds'; use startup_s, resident_mb"),
        ("[bare]\nstartup_s = -1", "bare.startup_s must be a number that is 0 or more, not -1"),
        ("[bare]\nstartup_s = nan", "bare.startup_s must be a number"),
        ("[bare]\nstartup_s = true", "bare.startup_s must be a number"),
        ("bare = 1", "bare must be a table, written [bare]"),
        ("[lang]", "one table per runtime, for example [lang.python]"),
        ("[lang.python]\nstartup_s = 1", "lang.python.resident_mb is missing; write resident_mb = NUMBER"),
        ("[lang.python]\nstartup_s = 1\nresident_mb = 1\nshare = 0", "all shares under lang are 0"),
        ("[lang.'a b']\nstartup_s = 1\nresident_mb = 1", "in the name of a runtime"),
        ("[lang.a]\nstartup_s = 1\nresident_mb = 1\nforks = 1", "lang.a.forks must be true or false, not 1"),
        (
            "".join(f"[lang.{name}]\nstartup_s = 1\nresident_mb = 1\nforks = false\n" for name in "ab"),
            "for one runtime only",
        ),
        ("[user.cobol]\nstartup_s = 1", "unknown key 'user.cobol'; use startup_s, resident_mb, python, node, java"),
        ("[user]\nstartup_s = 0", "user.startup_s must be more than 0"),
        ("[user]\nstartup_s = {mean = 1}", "unknown key 'user.startup_s.mean'; use median, sigma"),
        ("[user]\nstartup_s = {median = 1}", "user.startup_s.sigma is missing"),
        ("[user", "not TOML"),
    ],
)
def test_mistakes_name_the_file_the_key_and_the_remedy(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadDefinition) as caught:
        costs.read(path)
    assert caught.value.message.startswith(str(path))
    assert says in caught.value.message


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(BadDefinition, match=r"none\.toml: No such file"):
        costs.read(tmp_path / "none.toml")


def test_draws_are_those_of_the_distribution() -> None:
    drawn = [DEFAULTS.of(f"f{index}", None, seed=1) for index in range(4000)]
    shares = Counter(one.runtime for one in drawn)
    assert shares["python"] / 4000 == pytest.approx(0.50, abs=0.03)
    assert shares["node"] / 4000 == pytest.approx(0.35, abs=0.03)
    assert statistics.median(one.user_s for one in drawn) == pytest.approx(0.8, rel=0.06)
    assert {one.user_bytes for one in drawn} == {55 * MB}


def test_a_function_costs_the_same_in_every_trace() -> None:
    assert DEFAULTS.of("f", 7 * MB, seed=3) == DEFAULTS.of("f", 7 * MB, seed=3)
    assert DEFAULTS.of("f", 7 * MB, seed=3).user_bytes == 7 * MB
    assert DEFAULTS.of("f", None, seed=3) != DEFAULTS.of("f", None, seed=4)


def test_runtimes_are_lang_keys_of_which_none_is_anothers_ancestor(tmp_path: Path) -> None:
    keys = {runtime: DEFAULTS.spec("f", runtime, 5).lang_key for runtime in DEFAULTS.langs}
    assert all(key.forks for key in keys.values())
    assert not any(a.covers(b) for a in keys.values() for b in keys.values() if a != b)
    assert {runtime: DEFAULTS.lang(key) for runtime, key in keys.items()} == DEFAULTS.langs
    found = costs.read(write(tmp_path, FULL))
    assert found.spec("f", "nodejs", 5).lang_key == LangKey((), "nodejs")
    assert found.lang(LangKey((), "nodejs")) is found.langs["nodejs"]
