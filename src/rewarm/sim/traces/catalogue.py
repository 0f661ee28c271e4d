"""Finds a trace by the name of a shipped one or by its path, and what it is by its header."""

from __future__ import annotations

from pathlib import Path

from rewarm.sim.traces import calls, fits, minutes
from rewarm.sim.traces.base import Options, Trace, bad, rows

_DATA = Path(__file__).parents[1] / "data"
#: Name → file in the package. Where they come from and under which terms: data/DATA-LICENSES.md.
SHIPPED = {
    "azure-2019": _DATA / "azure_functions_2019_d01_400func.csv.gz",
    "azure-2021": _DATA / "azure_functions_2021_sample199.csv.gz",
    "servegen": _DATA / "servegen_language_2days_60clients.csv.gz",
    "servegen-images": _DATA / "servegen_arrivals_multimodal_mm_image.csv.gz",
}


def open_trace(name: str, options: Options) -> Trace:
    """A shipped trace by its name, or a file. Raises BadDefinition."""
    path = SHIPPED[name] if name in SHIPPED else Path(name).expanduser()
    if name not in SHIPPED and not path.exists():
        raise bad(path, None, "no such file", f"name a trace file, or one of {', '.join(SHIPPED)}")
    with rows(path) as table:
        header = table.header
        if any(format.fits(header) for format in (minutes, calls, fits)) and next(table, None) is None:
            raise bad(path, None, "the file has a header and no rows", "name a trace with calls")
    if minutes.fits(header):
        return minutes.MinuteTrace(path, options)
    if options.whole_minutes:
        raise bad(path, 1, "only the minute format of Azure 2019 has whole minutes", "use --granularity call")
    if calls.fits(header):
        return calls.CallTrace(path, options)
    if fits.fits(header):
        return fits.FittedTrace(path, options)
    if not header:
        raise bad(path, None, "the file is empty", "name a trace file")
    formats = "; ".join(
        (
            f"{','.join(calls.PLAIN)} (plain)",
            "HashFunction,…,1,2,… (Azure 2019)",
            f"{','.join(calls.AZURE_2021)} (Azure 2021)",
            f"{','.join(fits.COLUMNS)} (ServeGen)",
        )
    )
    raise bad(path, 1, "the header is of no format that is known", f"the columns must be {formats}")
