"""Random FROM clauses with models in them, in the spellings that people and SQL generators use.

`Writer` is what both halves of the generator share: the random numbers, names, quoting and bindings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from .world import LITERALS, OLD, parameter, twin


@dataclass(frozen=True)
class Column:
    """A column that may be named: `ref` is how."""

    ref: str
    kind: str
    """text, int, answer"""
    name: str = ""


@dataclass(frozen=True)
class Source:
    """What stands behind FROM, conditions that must stand in WHERE, and the columns there are."""

    text: str
    columns: tuple[Column, ...]
    where: tuple[str, ...] = ()
    key: str | None = None
    """A column that is different in each row."""

    def of(self, *kinds: str) -> list[Column]:
        """The columns of some kinds."""
        return [c for c in self.columns if c.kind in kinds]


@dataclass
class Writer:
    """Random choices, and a style that holds for a whole statement."""

    random: Random
    quoting: str = "plain"
    parentheses: bool = False
    used: int = 0
    unaliased: set[str] = field(default_factory=set)
    """Tables and models that stand in the statement under their own names; each does so once."""

    def chance(self, share: float) -> bool:
        """True so often."""
        return self.random.random() < share

    def pick(self, *of: str) -> str:
        """One of them."""
        return self.random.choice(of)

    def alias(self, stem: str = "") -> str:
        """A name that nothing else has, as dbplyr, ibis and SQLAlchemy make them."""
        self.used += 1
        return (stem or self.pick("t", "q0", "anon_", "LHS", "a")) + str(self.used + 1)

    def own_name(self, table: str) -> str:
        """A table's own name where it is still free, else an alias."""
        if table in self.unaliased:
            return self.alias()
        self.unaliased.add(table)
        return table

    def name(self, name: str) -> str:
        """An identifier in the statement's quoting."""
        if self.quoting == "quoted":
            return f'"{name}"'
        if self.quoting == "backtick":
            return twin(f"`{name}`", f'"{name}"')
        return name.upper() if self.quoting == "upper" and self.chance(0.5) else name

    def ref(self, alias: str, column: str) -> str:
        """A qualified column."""
        return f"{self.name(alias)}.{self.name(column)}"

    def all_of(self, conditions: list[str]) -> str:
        """Conditions joined by AND, as the style writes them."""
        if self.parentheses:
            conditions = [f"({c})" for c in conditions]
        if len(conditions) > 2 and self.chance(0.3):
            conditions = ["(" + " AND ".join(conditions[:2]) + ")", *conditions[2:]]
        return " AND ".join(conditions)

    def text_literal(self) -> str:
        """A string of those that the models have answers to."""
        return parameter(self.random.choice(LITERALS))

    # -- bindings ------------------------------------------------------------------------------------------

    def bind(self, inner: str, value: str) -> str:
        """An equality that gives an input its value, in any spelling."""
        same = f"{inner} IS NOT DISTINCT FROM {value}"
        cast = self.pick("({})::VARCHAR", "CAST({} AS VARCHAR)", "({}::TEXT)").format(value)
        spelled = self.random.choices(
            [
                f"{inner} = {value}",
                f"{value} = {inner}",
                f"({inner} = {value})",
                f"(({value} = {inner}))",
                f"({inner}) = ({value})",
                f"{inner} {'=' if OLD else '=='} {value}",  # 1.5 reads a == b || c as (a == b) || c
                f"{inner} = {cast}",
                f"{cast} = {inner}",
                f"{inner} IN ({value})",
                f"{inner} = ANY ([{value}])",
                same,
                f"{value} IS NOT DISTINCT FROM {inner}",
            ],
            [8, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        )[0]
        return twin(spelled, same)

    def bind_list(self, inner: str, values: list[str]) -> str:
        """An input with several values."""
        same = "(" + " OR ".join(f"{inner} IS NOT DISTINCT FROM {v}" for v in values) + ")"
        listed = ", ".join(values)
        spelled = self.pick(
            f"{inner} IN ({listed})",
            f"({inner} IN ({listed}))",
            f"{inner} = ANY ([{listed}])",
            f"{inner} IN [{listed}]",
            "(" + " OR ".join(f"{inner} = {v}" for v in values) + ")",
            "(" + " OR ".join(f"({inner} = {v})" for v in values) + ")",
        )
        return twin(spelled, same)

    def bind_query(self, inner: str, query: str) -> str:
        """An input with the values of a query of one column."""
        spelled = self.pick(f"{inner} IN ({query})", f"({inner} IN ({query}))", f"{inner} = ANY ({query})")
        return twin(spelled, f"EXISTS (SELECT 1 FROM ({query}) AS s_(v_) WHERE s_.v_ IS NOT DISTINCT FROM {inner})")

    def value(self, source: Source) -> str:
        """An expression over a source's columns that the models have answers to."""
        if not (texts := source.of("text")):
            return self.text_literal()
        ref = self.random.choice(texts).ref
        forms = [ref] * 5 + [f"upper({ref})"]
        if source.of("int") and self.chance(0.2):
            forms += [f"CAST({self.random.choice(source.of('int')).ref} AS VARCHAR)"]
        if self.chance(0.1):
            forms = [f"CASE WHEN {ref} IS NULL THEN NULL ELSE {ref} END", f"coalesce({ref}, NULL)", f"trim({ref})"]
        return self.random.choice(forms)

    # -- tables --------------------------------------------------------------------------------------------

    def base(self) -> Source:
        """A table, or something that stands for one."""
        table = self.pick("t", "t", "t", "u", "u", "pq")
        names = {"t": ("x", "content"), "u": ("nm", "content"), "pq": ("p", "q")}[table]
        ints = {"t": ("id", "k"), "u": ("id", "y"), "pq": ("id",)}[table]
        alias = self.alias() if self.chance(0.5) else self.own_name(table)
        listed = ", ".join(self.name(n) for n in (*ints, *names))
        where = f" WHERE {self.name('id')} < {self.random.randint(3, 9)}"
        text = self.name(table)
        if self.chance(0.25):
            alias = self.alias()
            inner = self.pick(
                f"SELECT {listed} FROM {text}",
                f"SELECT {listed} FROM {text}{where}",
                f"FROM {text} SELECT {listed}{where}",
                f"SELECT * FROM {text}",
                f"SELECT {listed} FROM {text} ORDER BY {self.name('id')} LIMIT 6",
            )
            text = f"({inner}) {self.pick('', 'AS ')}{self.name(alias)}"
        elif alias != table:
            text = f"{text} {self.pick('', 'AS ')}{self.name(alias)}"
        columns = [Column(self.ref(alias, n), "int", n) for n in ints]
        columns += [Column(self.ref(alias, n), "text", n) for n in names]
        return Source(text, tuple(columns), key=columns[0].ref)

    def joined(self, base: Source) -> Source:
        """Another table beside it, one row at most for each of its rows or several."""
        other = self.base()
        ids = [c for c in other.columns if c.name == "id"]
        if base.key is None or not ids:
            return base
        on = f"{ids[0].ref} = {base.key}"
        kind = self.pick(
            "JOIN", "INNER JOIN", "LEFT JOIN", "LEFT OUTER JOIN", ",", "SEMI JOIN", "ANTI JOIN", "FULL JOIN"
        )
        if kind == ",":
            return Source(f"{base.text}, {other.text}", base.columns + other.columns, (*base.where, on), base.key)
        text = f"{base.text} {kind} {other.text} ON {'(' + on + ')' if self.parentheses else on}"
        if kind in ("SEMI JOIN", "ANTI JOIN"):
            return replace(base, text=text)
        return Source(text, base.columns + other.columns, base.where, None if kind == "FULL JOIN" else base.key)

    # -- models --------------------------------------------------------------------------------------------

    def model(self, name: str = "") -> tuple[str, str, tuple[str, ...], str]:
        """A model: its text with the alias, the alias, inputs, output."""
        name = name or self.pick("m", "m", "m", "m2", "two")
        inputs = {"m": ("content",), "m2": ("q",), "two": ("p", "q")}[name]
        output = {"m": "answer", "m2": "label", "two": "reply"}[name]
        text = self.name(name)
        if self.chance(0.08):
            text = twin(self.pick(f"{name}.1", f"mindsdb.{name}", f"mindsdb.{name}.1"), text)
            alias = self.alias()
        elif self.chance(0.6):
            alias = self.alias()
        else:
            alias = self.own_name(name)
        if alias != name:
            text = f"{text} {self.pick('', 'AS ')}{self.name(alias)}"
        return text, alias, inputs, output

    def with_model(self, base: Source, chained: bool = False) -> Source:
        """A model joined to a source, in one of the ways there are; chained: m2 reads what m answers."""
        first = [c.ref for c in base.of("answer") if c.name == "answer"] if chained else []
        text, alias, inputs, output = self.model("m2" if first else "")
        values = [self.value(base) for _ in inputs]
        if first:
            ref = self.random.choice(first)
            values = [self.pick(ref, ref, f"upper({ref})", f"{ref} || 'z'")]
        binds = [self.bind(self.ref(alias, i), v) for i, v in zip(inputs, values, strict=True)]
        columns = tuple(Column(self.ref(alias, i), "bound", i) for i in inputs)
        columns += (Column(self.ref(alias, output), "answer", output),)
        extra = [self.condition(base)] if self.chance(0.2) else []
        on = self.all_of(self.shuffled(binds + extra))
        on = f"({on})" if self.chance(0.15) else on
        all_columns = base.columns + columns
        joins: list[Callable[[], Source]] = [
            lambda: Source(f"{base.text} JOIN {text} ON {on}", all_columns, base.where, base.key),
            lambda: Source(f"{base.text} INNER JOIN {text} ON {on}", all_columns, base.where, base.key),
            lambda: Source(f"{base.text} LEFT JOIN {text} ON {on}", all_columns, base.where, base.key),
            lambda: Source(f"{base.text} LEFT OUTER JOIN {text} ON {on}", all_columns, base.where, base.key),
            lambda: Source(f"{base.text} CROSS JOIN {text}", all_columns, (*base.where, *binds), base.key),
            lambda: Source(f"{base.text}, {text}", all_columns, (*base.where, *binds), base.key),
            lambda: Source(f"{base.text} JOIN {text} ON true", all_columns, (*base.where, *binds), base.key),
            lambda: Source(
                twin(f"{base.text} JOIN {text}", f"{base.text} CROSS JOIN {text}"),
                all_columns,
                (*base.where, *binds),
                base.key,
            ),
            lambda: self._semi(base, text, alias, output, binds),
            lambda: self._lateral(base, text, alias, output, inputs, binds),
        ]
        weights = [8, 2, 4, 1, 1, 3, 1, 1, 1, 2]
        if " JOIN " not in base.text and ", " not in base.text:
            joins += [
                lambda: Source(f"{text} JOIN {base.text} ON {on}", all_columns, base.where, base.key),
                lambda: Source(f"{text}, {base.text}", all_columns, (*base.where, *binds), base.key),
                lambda: Source(f"{text} RIGHT JOIN {base.text} ON {on}", all_columns, base.where, base.key),
                lambda: Source(f"({base.text} JOIN {text} ON {on})", all_columns, base.where, base.key),
            ]
            weights += [2, 1, 1, 1]
        return self.random.choices(joins, weights)[0]()

    def by_name(self) -> Source:
        """A model whose input takes the column of its own name: USING, NATURAL, or nothing at all."""
        if self.chance(0.3):
            left, text = self.ref("pq", "p"), self.name("two")
            right = self.ref("pq", "q")
            wanted = f"{self.ref('two', 'p')} IS NOT DISTINCT FROM {left}"
            wanted += f" AND {self.ref('two', 'q')} IS NOT DISTINCT FROM {right}"
            join = twin(f"{self.name('pq')} JOIN {text}", f"{self.name('pq')} JOIN {text} ON {wanted}")
            ids, reply = Column(self.ref("pq", "id"), "int", "id"), Column(self.ref("two", "reply"), "answer", "reply")
            return Source(join, (ids, Column(left, "text", "p"), reply), key=ids.ref)
        columns = (
            Column(self.ref("u", "id"), "int", "id"),
            Column(self.ref("u", "nm"), "text", "nm"),
            Column(self.name("content"), "text", "content"),
            Column(self.ref("m", "answer"), "answer", "answer"),
        )
        using = f"{self.name('u')} JOIN {self.name('m')} USING ({self.name('content')})"
        form = self.pick(
            using,
            using.replace(" JOIN ", " LEFT JOIN "),
            using.replace(" JOIN ", " INNER JOIN "),
            f"{self.name('u')} NATURAL JOIN {self.name('m')}",
            f"{self.name('m')} JOIN {self.name('u')} USING ({self.name('content')})",
            twin(f"{self.name('u')} JOIN {self.name('m')}", using),
            twin(f"{self.name('u')} LEFT JOIN {self.name('m')}", using),
            twin(f"{self.name('u')}, {self.name('m')}", using),
            twin(f"{self.name('u')} CROSS JOIN {self.name('m')}", using),
        )
        return Source(form, columns, key=columns[0].ref)

    def _semi(self, base: Source, text: str, alias: str, output: str, binds: list[str]) -> Source:
        kind = self.pick("SEMI JOIN", "ANTI JOIN")
        on = self.all_of(self.shuffled([*binds, self.answer_condition(self.ref(alias, output))]))
        return replace(base, text=f"{base.text} {kind} {text} ON {on}")

    def _lateral(
        self, base: Source, text: str, alias: str, output: str, inputs: tuple[str, ...], binds: list[str]
    ) -> Source:
        outer = self.alias()
        listed = ", ".join(self.ref(alias, n) for n in (*inputs, output))
        query = f"(SELECT {listed} FROM {text} WHERE {self.all_of(binds)}) {self.pick('', 'AS ')}{self.name(outer)}"
        columns = tuple(Column(self.ref(outer, n), "bound", n) for n in inputs)
        columns = (*base.columns, *columns, Column(self.ref(outer, output), "answer", output))
        if self.chance(0.5):
            return Source(f"{base.text}, LATERAL {query}", columns, base.where, base.key)
        kind = self.pick("JOIN", "LEFT JOIN")
        return Source(f"{base.text} {kind} LATERAL {query} ON true", columns, base.where, base.key)

    # -- conditions ----------------------------------------------------------------------------------------

    def condition(self, source: Source) -> str:
        """Something on a column that is no answer."""
        number = self.random.randint(1, 9)
        ints, texts = source.of("int"), source.of("text")
        forms = []
        if ints:
            ref = self.random.choice(ints).ref
            forms += [f"{ref} < {number}", f"{ref} >= {number}", f"{ref} BETWEEN 1 AND {number}", f"{ref} <> {number}"]
            forms += [f"{ref} IN (1, 2, 3, {number})", f"{ref} % 2 = {number % 2}", f"NOT ({ref} = {number})"]
            forms += [f"{ref} IN (SELECT {self.name('id')} FROM {self.name('u')} WHERE {self.name('y')} > {number})"]
            forms += [f"{ref} < {number}.0", f"({ref} < {number} OR {ref} > 7)"]
        if texts:
            ref = self.random.choice(texts).ref
            forms += [f"{ref} IS NOT NULL", f"{ref} LIKE '%{number % 4}'", f"{ref} <> 'p{number % 4}'"]
        return self.random.choice(forms or ["true"])

    def answer_condition(self, ref: str) -> str:
        """Something on an answer."""
        digit = self.random.randint(0, 4)
        return self.pick(
            f"{ref} LIKE '%{digit}'",
            f"{ref} IS NOT NULL",
            f"{ref} IS NULL",
            f"{ref} > 'A: c{digit}'",
            f"{ref} = 'A: p{digit}'",
            f"{ref} IN ('A: p{digit}', 'A: C1', 'L c2', 'A: n0')",
            f"length({ref}) > {digit + 3}",
            f"NOT ({ref} LIKE '%{digit}')",
            f"upper({ref}) <> {ref}",
            f"contains({ref}, '{digit}') IS NOT TRUE",
        )

    def shuffled(self, some: list[str]) -> list[str]:
        """In any order."""
        return self.random.sample(some, len(some))
