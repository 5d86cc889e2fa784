"""Tables of the compiled updates, with a column for each processor that was measured."""

from typing import Any

from torch_crl.benchmarks.table_parts import machine_line, read_result

_PROCESSORS = {
    "zen5": "AMD EPYC (Zen 5)",
    "zen4": "AMD EPYC (Zen 4)",
    "x86_64": "x86-64, before the faster loops",
}
_PEERS = {
    "plain_torch": "plain PyTorch in fp32",
    "torch_compile": "torch.compile, module by module",
    "jax": "JAX",
}


def processors_table(folder: str) -> str:
    """Updates per second, and how many times those of a peer, of every result in a folder."""
    documents = {key: read_result(f"{folder}/{key}.json") for key in _PROCESSORS}
    lines = [
        f"| depth, width, batch | | {' | '.join(_PROCESSORS.values())} |",
        "|---" * (2 + len(documents)) + "|",
    ]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for key, document in documents.items():
        for row in document["rows"]:
            cells.setdefault(_what(row), {})[key] = _cell(row)
    for (sizes, beside), own in cells.items():
        lines.append(f"| {sizes} | {beside} | {' | '.join(own[key] for key in documents)} |")
    told = [
        f"{name}: {machine_line(documents[key]['machine'])}" for key, name in _PROCESSORS.items()
    ]
    return "\n".join([*lines, "", "Updates/s (times as many as the peer). " + " ".join(told)])


def _peer(row: dict[str, Any]) -> str:
    (peer,) = (peer for peer in _PEERS if f"{peer}_per_second" in row)
    return peer


def _what(row: dict[str, Any]) -> tuple[str, str]:
    sizes = ", ".join(str(row[name]) for name in ("depth", "width", "batch"))
    return sizes, f"{row.get('precision', 'fp32')} beside {_PEERS[_peer(row)]}"


def _cell(row: dict[str, Any]) -> str:
    digits = 0 if row["ours_per_second"] >= 100 else 1
    return f"{row['ours_per_second']:,.{digits}f} ({row['ratio']:.2f})"
