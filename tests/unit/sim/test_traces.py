"""Readers of traces: what they make of good files, and what they say of bad ones."""

from __future__ import annotations

import gzip
import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from rewarm.errors import BadDefinition
from rewarm.sim.traces.base import Options, Trace
from rewarm.sim.traces.catalogue import SHIPPED, open_trace

Calls = list[tuple[float, str, float]]
PLAIN = "t_s,function,duration_s\n"
FITS = "client,window_start_s,rate_per_s,iat_cv,iat_dist,shape,scale\n"


def write(folder: Path, text: str, name: str = "trace.csv") -> str:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


def read(trace: Trace) -> Calls:
    return [
        (at_s, trace.functions[function].name, run_s)
        for chunk in trace.chunks()
        for at_s, function, run_s in zip(*chunk, strict=True)
    ]


def minutes(*rows: str, count: int = 3, more: str = "Average,divvied") -> str:
    columns = ",".join(str(minute) for minute in range(1, count + 1))
    return f"HashFunction,Trigger,{columns},{more}\n" + "".join(f"{row}\n" for row in rows)


# ---------------------------------------------------------------- plain CSV


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz", "anything"])
def test_plain(tmp_path: Path, name: str) -> None:
    text = PLAIN + "0,a,1.5\n\n0.5,b,0\n0.5,a,2\n"
    trace = open_trace(write(tmp_path, text, name), Options())
    assert read(trace) == [(0.0, "a", 1.5), (0.5, "b", 0.0), (0.5, "a", 2.0)]
    assert trace.end_s == 2.5
    assert trace.total is None
    assert read(trace) == read(trace)


def test_a_function_is_known_with_its_first_call(tmp_path: Path) -> None:
    text = "t_s,function,duration_s\n0,a,1\n5,a,1\n10,b,1\n20,a,1\n30,c,1\n40,b,1\n"
    trace = open_trace(write(tmp_path, text), Options())
    known = [(chunk.times_s, len(trace.functions)) for chunk in trace.chunks()]
    assert known == [([0.0, 5.0], 1), ([10.0, 20.0], 2), ([30.0, 40.0], 3)]


def test_columns_may_be_in_any_order_and_more(tmp_path: Path) -> None:
    text = "\ufefffunction, note,duration_s,t_s\na,x,1,2\n"
    assert read(open_trace(write(tmp_path, text), Options())) == [(2.0, "a", 1.0)]


def test_parts_of_a_trace(tmp_path: Path) -> None:
    path = write(tmp_path, PLAIN + "0,a,1\n1,b,1\n2,b,1\n3600,a,1\n3601,b,1\n3602,b,1\n3603,c,1\n7200,c,1\n")
    hour = Options(hours=(1.0, 2.0))
    assert [call[:2] for call in read(open_trace(path, hour))] == [(3600, "a"), (3601, "b"), (3602, "b"), (3603, "c")]
    without = open_trace(path, Options(hours=(1.0, 2.0), drop_busiest=1))
    assert without.total == 2
    assert [call[1] for call in read(without)] == ["a", "c"]
    assert [call[1] for call in read(open_trace(path, Options(functions=frozenset("ac"))))] == ["a", "a", "c", "c"]


@pytest.mark.parametrize(
    ("text", "row", "says"),
    [
        ("", None, "the file is empty"),
        ("t,f\n1,2\n", 1, "the header is of no format that is known; the columns must be t_s,function,duration_s"),
        (PLAIN + "0,a\n", 2, "2 columns where the header has 3"),
        (PLAIN + "0,a,1\nx,a,1\n", 3, "t_s is 'x', not a number"),
        (PLAIN + "0,a,-1\n", 2, "duration_s is negative: -1; correct the row or remove it"),
        (PLAIN + "0,a,inf\n", 2, "duration_s is not finite"),
        (PLAIN + "nan,a,1\n", 2, "t_s is not finite"),
        (PLAIN + "-1,a,1\n", 2, "t_s is negative"),
        (PLAIN + "0,a,1\n5,a,1\n4.9,a,1\n", 4, "a call at 4.9 s comes after one at 5 s; sort the rows"),
        (PLAIN + "0,../a,1\n", 2, "'../a' is not a function name"),
        (PLAIN, None, "the file has a header and no rows; name a trace with calls"),
        (PLAIN + '0,"' + "a" * (1 << 21) + '",1\n', 2, "not CSV"),
        (PLAIN + "0,a\0,1\n", 2, "not"),
    ],
)
def test_plain_mistakes(tmp_path: Path, text: str, row: int | None, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadDefinition) as caught:
        read(open_trace(path, Options()))
    assert caught.value.message.startswith(path if row is None else f"{path}, row {row}: ")
    assert says in caught.value.message


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadDefinition, match="no such file; name a trace file, or one of azure-2019, azure-2021"):
        open_trace(str(tmp_path / "none.csv"), Options())
    with pytest.raises(BadDefinition, match="cannot be read: Is a directory"):
        open_trace(str(tmp_path), Options())
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadDefinition, match="not a text file"):
        open_trace(str(tmp_path / "binary"), Options())
    whole = gzip.compress((PLAIN + "0,a,1\n" * 1000).encode())
    (tmp_path / "torn.gz").write_bytes(whole[:-20])
    with pytest.raises(BadDefinition, match="compressed file is damaged"):
        read(open_trace(str(tmp_path / "torn.gz"), Options()))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak_bytes(rows: int) -> int:
        path = tmp_path / f"{rows}.csv"
        with path.open("w") as file:
            file.write(PLAIN)
            file.writelines(f"{row},f{row % 50},0.1\n" for row in range(rows))
        trace = open_trace(str(path), Options())
        tracemalloc.start()
        count = sum(len(chunk.times_s) for chunk in trace.chunks())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == rows
        return peak

    assert peak_bytes(60_000) < 1.2 * peak_bytes(12_000)


# ---------------------------------------------------------------- Azure 2021


def test_azure_2021_comes_at_end_less_duration(tmp_path: Path) -> None:
    text = "app,func,end_timestamp,duration\naa,ff,10.004,10\naa,gg,1.002,1\nbb,ff,9,0.5\n"
    found = read(open_trace(write(tmp_path, text), Options()))
    assert [(at_s, name) for at_s, name, _ in found] == [
        (pytest.approx(0.004), "aa.ff"), (pytest.approx(0.004), "aa.gg"), (8.5, "bb.ff")
    ]  # fmt: skip
    assert [run_s for _, _, run_s in found] == [10.0, 1.0, 0.5]


def test_azure_2021_out_of_order(tmp_path: Path) -> None:
    text = "app,func,end_timestamp,duration\na,f,10,1\na,f,9,1\n"
    with pytest.raises(BadDefinition, match="row 3: a call at 8 s comes after one at 9 s"):
        read(open_trace(write(tmp_path, text), Options()))


# ---------------------------------------------------------------- Azure 2019


def test_azure_2019(tmp_path: Path) -> None:
    path = write(tmp_path, minutes("a,http,0,2,1,500,10", "b,timer,1,0,1,2000,0.5"))
    trace = open_trace(path, Options(seed=5))
    found = read(trace)
    assert trace.total == len(found) == 5
    assert trace.end_s == 180.0
    assert [time for time, _, _ in found] == sorted(time for time, _, _ in found)
    assert [(int(time // 60), name) for time, name, _ in found][:3] == [(0, "b"), (1, "a"), (1, "a")]
    assert {(name, run_s) for _, name, run_s in found} == {("a", 0.5), ("b", 2.0)}
    assert [function.memory_bytes for function in trace.functions] == [10 << 20, 1 << 19]
    assert read(trace) == found == read(open_trace(path, Options(seed=5)))
    assert read(open_trace(path, Options(seed=6))) != found


def test_azure_2019_evenly_spaced_and_by_the_minute(tmp_path: Path) -> None:
    path = write(tmp_path, minutes("a,http,0,3,1", "b,http,1,2,0", more="Count").replace("3,1\n", "3,1,9\n").replace(
        "2,0\n", "2,0,9\n"))  # fmt: skip
    found = read(open_trace(path, Options(even=True, run_s=7.0)))
    assert found == [
        (0.0, "b", 7.0), (60.0, "a", 7.0), (60.0, "b", 7.0), (80.0, "a", 7.0), (90.0, "b", 7.0), (100.0, "a", 7.0),
        (120.0, "a", 7.0),
    ]  # fmt: skip
    trace = open_trace(path, Options(whole_minutes=True))
    assert read(trace) == [(0.0, "b", 60.0), (60.0, "a", 60.0), (60.0, "b", 60.0), (120.0, "a", 60.0)]
    assert trace.total == 4
    assert trace.functions[0].memory_bytes is None


def test_azure_2019_in_part(tmp_path: Path) -> None:
    path = write(tmp_path, minutes("a,http,0,9,1,1,1", "b,http,1,2,0,1,1", "c,http,1,0,0,1,1"))
    dropped = open_trace(path, Options(drop_busiest=1))
    assert {name for _, name, _ in read(dropped)} == {"b", "c"}
    second = open_trace(path, Options(hours=(1 / 60, 2 / 60), drop_busiest=1))
    assert [name for _, name, _ in read(second)] == ["b", "b"]
    assert second.end_s == 120.0
    assert open_trace(path, Options(functions=frozenset("c"))).total == 1


@pytest.mark.parametrize(
    ("text", "row", "says"),
    [
        (minutes("a,http,0,-2,1,5,5"), 2, "minute 2 has '-2' calls; write a whole number that is 0 or more"),
        (minutes("a,http,0,1,1,5,5", "b,http,0,1,1.5,5,5"), 3, "minute 3 has '1.5' calls"),
        (minutes("a,http,,1,1,5,5"), 2, "minute 1 has '' calls"),
        (minutes("a,http,99999999999999999999,1,1,5,5"), 2, "minute 1 has '9999999"),
        (minutes("a,http,1,1,1,-5,5"), 2, "Average is negative"),
        (minutes("a,http,1,1,1,5,much"), 2, "divvied is 'much', not a number"),
        (minutes("a,http,1,1,1,5,5", "a,http,1,1,1,5,5"), 3, "the function 'a' comes twice"),
        (minutes("a b,http,1,1,1,5,5"), 2, "'a b' is not a function name"),
        (minutes("a,http,1,1"), 2, "4 columns where the header has 7"),
        (minutes(), None, "the file has a header and no rows"),
    ],
)
def test_azure_2019_mistakes(tmp_path: Path, text: str, row: int | None, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadDefinition) as caught:
        open_trace(path, Options())
    assert caught.value.message.startswith(path if row is None else f"{path}, row {row}: ")
    assert says in caught.value.message


def test_dropping_more_than_there_are(tmp_path: Path) -> None:
    path = write(tmp_path, minutes("a,http,1,1,1,5,5"))
    with pytest.raises(BadDefinition, match="1 functions, and the 3 busiest are to be dropped; drop fewer"):
        open_trace(path, Options(drop_busiest=3))


def test_only_the_minute_format_has_minutes(tmp_path: Path) -> None:
    with pytest.raises(BadDefinition, match="use --granularity call"):
        open_trace(write(tmp_path, PLAIN + "0,a,1\n"), Options(whole_minutes=True))


# ---------------------------------------------------------------- ServeGen


def test_servegen(tmp_path: Path) -> None:
    path = write(tmp_path, FITS + "7,600,0.5,1,Gamma,0.5,2\n7,0,0.1,1,Weibull,0.6,2\n8,600,0.02,3,Gamma,1,2\n")
    trace = open_trace(path, Options(run_s=0.25))
    found = read(trace)
    assert trace.total == len(found) == 300 + 60 + 12
    assert trace.end_s == 1200.0
    assert [time for time, _, _ in found] == sorted(time for time, _, _ in found)
    assert sum(time < 600 for time, _, _ in found) == 60
    assert {name for _, name, _ in found} == {"client-7", "client-8"}
    assert {run_s for _, _, run_s in found} == {0.25}
    assert read(trace) == found != read(open_trace(path, Options(run_s=0.25, seed=2)))


def test_servegen_gaps_have_the_shape_of_the_fit(tmp_path: Path) -> None:
    path = write(tmp_path, FITS + "0,0,50,1,Gamma,0.25,1\n1,0,50,1,Weibull,2,1\n")
    trace = open_trace(path, Options())
    found = read(trace)
    for client, cv in (("client-0", 2.0), ("client-1", 0.5227)):  # 1/sqrt(shape); of Weibull's shape 2
        gaps = np.diff([time for time, name, _ in found if name == client])
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_servegen_in_part(tmp_path: Path) -> None:
    path = write(tmp_path, FITS + "1,0,0.1,1,Gamma,1,1\n2,0,0.2,1,Gamma,1,1\n3,3600,0.3,1,Gamma,1,1\n")
    assert {name for _, name, _ in read(open_trace(path, Options(drop_busiest=1)))} == {"client-1", "client-2"}
    assert {name for _, name, _ in read(open_trace(path, Options(hours=(1.0, 9.0))))} == {"client-3"}
    assert open_trace(path, Options(functions=frozenset(["client-2"]))).total == 120


def test_a_shape_that_makes_no_gaps_at_all(tmp_path: Path) -> None:
    found = read(open_trace(write(tmp_path, FITS + "1,0,0.1,1,Gamma,1e-9,1\n"), Options()))
    assert len(found) == 60
    assert found[-1][0] < 600


@pytest.mark.parametrize(
    ("text", "row", "says"),
    [
        (FITS + "1,0,0.1,1,Pareto,1,1\n", 2, "iat_dist is 'Pareto'; use Gamma or Weibull"),
        (FITS + "1,0,0.1,1,Gamma,0,1\n", 2, "shape and scale must be more than 0"),
        (FITS + "1,0,-0.1,1,Gamma,1,1\n", 2, "rate_per_s is negative"),
        (FITS + "1,30,0.1,1,Gamma,1,1\n", 2, "window_start_s 30 is no multiple of 600"),
        (FITS + "1,0,1e9,1,Gamma,1,1\n", 2, "rate_per_s is 1e+09; at most"),
        (FITS + "1,0,1,1,Gamma,1,1\n1,0,1,1,Gamma,1,1\n", 3, "client '1' has this window twice"),
        (FITS + "a b,0,1,1,Gamma,1,1\n", 2, "'client-a b' is not a function name"),
        (FITS + "1,0,0,1,Gamma,1,1\n", None, "no client is left"),
    ],
)
def test_servegen_mistakes(tmp_path: Path, text: str, row: int | None, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadDefinition) as caught:
        open_trace(path, Options())
    assert caught.value.message.startswith(path if row is None else f"{path}, row {row}: ")
    assert says in caught.value.message


# ---------------------------------------------------------------- what is shipped


@pytest.mark.parametrize(
    ("name", "functions", "total"),
    [
        ("azure-2019", 400, 18_452_673), ("azure-2021", 31, 199),
        ("servegen", 60, 335_467), ("servegen-images", 35, 818_610),
    ],
)  # fmt: skip
def test_shipped(name: str, functions: int, total: int) -> None:
    trace = open_trace(name, Options())
    if trace.total is None:
        assert len(read(trace)) == total
    else:
        assert trace.total == total
        first = next(iter(trace.chunks()))
        assert all(a <= b for a, b in itertools.pairwise(first.times_s))
    assert len(trace.functions) == functions


def test_every_shipped_file_has_its_terms_beside_it() -> None:
    terms = (next(iter(SHIPPED.values())).parent / "DATA-LICENSES.md").read_text("utf-8")
    assert all(path.name in terms for path in SHIPPED.values())
    assert {path.name for path in SHIPPED.values()} == {file.name for file in SHIPPED["servegen"].parent.glob("*.gz")}
