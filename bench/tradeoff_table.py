"""The table of bench.tradeoff: one row per method, number of steps and turn, appended as soon as it is measured."""

import csv
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path

__all__ = ["LIMITS", "Point", "Table"]

LIMITS = ("ran past", "passed", "predicted")  # how ``left_out`` begins where a limit of time or memory is the reason


@dataclass
class Point:
    """One measurement, or (``left_out`` not empty) why there is none.

    ``of_training``: CPU seconds in multiples of plain training's, same steps, same turn.
    """

    method: str
    exact: bool
    steps: int
    turn: int
    cpu_seconds: float = float("nan")
    wall_seconds: float = float("nan")
    of_training: float = float("nan")
    megabytes: float = float("nan")
    megabytes_beyond_warm_up: float = float("nan")
    error: float = float("nan")
    left_out: str = ""

    def take(self, result: dict[str, float], training: "Point | None") -> None:
        for name, value in result.items():
            setattr(self, name, value)
        of = self if self.method == "training" else training
        if of is not None and not of.left_out:
            self.of_training = self.cpu_seconds / of.cpu_seconds

    def row(self) -> dict[str, object]:
        """Empty for what is not known, four digits for what is."""

        def shown(value: object) -> object:
            return ("" if value != value else f"{value:.4g}") if isinstance(value, float) else value

        return {name: shown(value) for name, value in asdict(self).items()}


class Table:
    """A CSV whose first three lines, comments, say what, where and beside which peers was measured.

    Rows of other tasks or machines do not mix. Peers may be installed later: their missing rows are asked for again.
    """

    def __init__(self, path: Path, task: str, versions: str, peers: str, points: list[Point]) -> None:
        self.path, self.task, self.versions, self.peers, self.points = path, task, versions, peers, points

    @staticmethod
    def open(path: Path, task: str, versions: str, peers: str) -> "Table":
        """The table at ``path``, made if there is none.

        Raises:
            SystemExit: if it holds points of another task, machine or version.
        """
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            table = Table(path, task, versions, peers, [])
            table.write()
            return table
        table = Table.read(path)
        for given, found in ((task, table.task), (versions, table.versions)):
            if given != found:
                raise SystemExit(f"--csv: {path} holds points of\n  {found}\nand this is\n  {given}\nName or remove a file")
        table.peers = peers
        table.points = [p for p in table.points if not p.left_out.startswith("not installed")]
        table.write()
        return table

    @staticmethod
    def read(path: Path) -> "Table":
        with path.open(newline="") as file:
            task, versions, peers = (file.readline().removeprefix("#").strip() for _ in range(3))
            points = [_point(row) for row in csv.DictReader(file)]
        return Table(path, task, versions, peers, points)

    def write(self) -> None:
        with self.path.open("w", newline="") as file:
            file.write(f"# {self.task}\n# {self.versions}\n# {self.peers}\n")
            writer = csv.DictWriter(file, [f.name for f in fields(Point)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(point.row() for point in self.points)

    def add(self, point: Point) -> None:
        self.points.append(point)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, [f.name for f in fields(Point)], lineterminator="\n").writerow(point.row())

    def forget(self, methods: list[str], steps: list[int]) -> None:
        self.points = [p for p in self.points if not (p.method in methods and p.steps in steps)]
        self.write()

    def find(self, method: str, steps: int, turn: int) -> Point | None:
        return next((p for p in self.points if (p.method, p.steps, p.turn) == (method, steps, turn)), None)

    def left_out(self, method: str, steps: int) -> bool:
        return any(p.left_out for p in self.points if (p.method, p.steps) == (method, steps))

    def before(self, method: str, steps: int) -> list[Point]:
        """One point (the first turn's) for each smaller number of steps, ascending."""
        return sorted((p for p in self.points if p.method == method and p.steps < steps and p.turn == 0), key=lambda p: p.steps)

    def methods(self) -> list[str]:
        return list(dict.fromkeys(p.method for p in self.points if not p.left_out))

    def medians(self, method: str, *columns: str) -> list[tuple[float, ...]]:
        """(steps, each column's median over the turns) for each number of steps that was measured, ascending."""
        measured: dict[int, list[Point]] = {}
        for point in self.points:
            if point.method == method and not point.left_out:
                measured.setdefault(point.steps, []).append(point)
        return [(s, *(statistics.median(getattr(p, c) for p in turns) for c in columns)) for s, turns in sorted(measured.items())]


def _point(row: dict[str, str]) -> Point:
    known = {"exact": row["exact"] == "True", "steps": int(row["steps"]), "turn": int(row["turn"])}
    numbers = {f.name: float(row[f.name] or "nan") for f in fields(Point) if f.name not in {"method", "left_out", *known}}
    return Point(method=row["method"], left_out=row["left_out"], **known, **numbers)  # type: ignore[arg-type]
