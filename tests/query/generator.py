"""Random statements over models: `generate(seed, number)` is one case, always the same one."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .sources import Column, Source, Writer
from .world import Case, twin


def generate(seed: int, number: int) -> Case:
    """The case of that number."""
    random = Random(seed * 1_000_003 + number)
    return Generator(
        random,
        quoting=random.choices(["plain", "quoted", "upper", "backtick"], [5, 3, 1, 1])[0],
        parentheses=random.random() < 0.4,
    ).case()


class Generator(Writer):
    """Writes whole statements."""

    def case(self) -> Case:
        """One statement, or several whose last one is compared."""
        shapes: list[tuple[Callable[[], Case], int]] = [
            (self.simple, 30),
            (self.alone, 12),
            (self.named, 6),
            (self.grouped, 10),
            (self.windowed, 7),
            (self.distinct, 4),
            (self.set_operation, 7),
            (self.with_ctes, 9),
            (self.nested, 9),
            (self.correlated, 9),
            (self.pivoted, 4),
            (self.unpivoted, 2),
            (self.beside, 4),
            (self.made, 6),
            (self.changed, 6),
            (self.viewed, 4),
        ]
        shape = self.random.choices([s for s, _ in shapes], [w for _, w in shapes])[0]
        return shape()

    def read(self, text: str, ordered: bool = False) -> Case:
        """A query as a case, fetched in one of the ways there are."""
        how = self.random.choices(["fetchall", "fetchone", "fetchmany", "sql"], [6, 1, 1, 2])[0]
        return Case([text], ordered, binds=self.chance(0.3), fetch=how)

    # -- pieces --------------------------------------------------------------------------------------------

    def source(self, models: int = 0) -> Source:
        """FROM with a model or several."""
        source = self.base()
        if self.chance(0.25):
            source = self.joined(source)
        for i in range(models or self.random.choices([1, 2, 3], [10, 4, 1])[0]):
            source = self.with_model(source, chained=i > 0 and self.chance(0.6))
        if self.chance(0.1):
            source = self.joined(source)
        return source

    def conditions(self, source: Source, least: int = 0) -> list[str]:
        """What stands in WHERE."""
        made = [*source.where]
        made += [self.condition(source) for _ in range(max(least, self.random.choice([0, 0, 1, 2])))]
        answers = source.of("answer")
        if answers and self.chance(0.3):
            made.append(self.answer_condition(self.random.choice(answers).ref))
        if answers and source.of("int") and self.chance(0.08):
            made.append(f"({self.condition(source)} OR {self.answer_condition(answers[0].ref)})")
        return self.shuffled(made)

    def where(self, conditions: list[str]) -> str:
        """WHERE, if there is anything to say."""
        return f" WHERE {self.all_of(conditions)}" if conditions else ""

    def expression(self, source: Source) -> str:
        """Something to select."""
        answers, others = source.of("answer"), source.of("int", "text", "bound")
        if not answers or self.chance(0.35):
            ref = self.random.choice(others or answers).ref
            return self.pick(ref, ref, ref, f"{ref} IS NULL", f"coalesce(CAST({ref} AS VARCHAR), '-')")
        ref = self.random.choice(answers).ref
        other = self.random.choice(others).ref if others else "1"
        return self.pick(
            *[ref] * 6,
            f"upper({ref})",
            f"length({ref})",
            f"{ref} || '-' || {other}",
            f"coalesce({ref}, 'none')",
            f"CASE WHEN {ref} LIKE '%1' THEN 'one' WHEN {other} IS NULL THEN 'nothing' ELSE {ref} END",
            f"substr({ref}, 1, 4)",
            f"{ref}[1:3]",
            f"{{'a': {ref}, 'b': {other}}}",
            f"[{ref}, CAST({other} AS VARCHAR)]",
            f"{ref} IS NOT NULL",
            f"concat_ws('|', {ref}, {other})",
            f"list_transform([{ref}], lambda v: v || '?')",
        )

    def listed(self, source: Source, count: int = 0, aliases: bool | None = None) -> tuple[str, list[str]]:
        """A select list, and the names of its columns where it gives them names."""
        count = count or self.random.randint(1, 4)
        aliases = self.chance(0.6) if aliases is None else aliases
        items, names = [], []
        must = source.of("answer")[:1] if self.chance(0.8) else []
        expressions = [c.ref for c in must] + [self.expression(source) for _ in range(count)]
        for i, text in enumerate(self.shuffled(expressions[:count])):
            names.append(f"c{i}")
            items.append(f"{text} AS {self.name(f'c{i}')}" if aliases else text)
        return ", ".join(items), names if aliases else []

    def select(self, source: Source, count: int = 0) -> str:
        """A query whose columns are c0, c1, …"""
        listed, _ = self.listed(source, count, aliases=True)
        text = f"SELECT {listed} FROM {source.text}{self.where(self.conditions(source))}"
        if self.chance(0.1):
            outer = self.alias()
            text = f"SELECT {self.name(outer)}.* FROM ({text}) AS {self.name(outer)}"
        return text

    def total(self, text: str, width: int) -> tuple[str, bool]:
        """A query with an order over all of its columns, and a limit; or without any."""
        choice = self.random.random()
        if choice < 0.5:
            return text, False
        if choice < 0.65:
            order = "ORDER BY ALL" + self.pick("", " DESC", " NULLS FIRST")
        else:
            parts = [f"{i + 1}{self.pick('', ' DESC', ' ASC NULLS LAST')}" for i in range(width)]
            order = "ORDER BY " + ", ".join(self.shuffled(parts))
        return f"{text} {order}{self.limit()}", True

    def limit(self) -> str:
        """LIMIT and OFFSET, sometimes."""
        n = self.random.randint(0, 8)
        return self.pick("", f" LIMIT {n}", f" LIMIT {n} OFFSET {self.random.randint(0, 4)}", f" OFFSET {n}")

    # -- shapes --------------------------------------------------------------------------------------------

    def simple(self) -> Case:
        """SELECT … FROM … WHERE … ORDER BY … LIMIT."""
        source = self.source()
        where = self.where(self.conditions(source))
        if self.chance(0.15):
            star = self.pick("*", "*", "* EXCLUDE (id)", "count(*)", "*, 1 AS one", "COLUMNS('.*er$')")
            names = [c.name for c in source.columns]
            if star in ("* EXCLUDE (id)", "COLUMNS('.*er$')") and not {"id", "answer"} <= set(names):
                star = "*"
            return self.read(f"SELECT {star} FROM {source.text}{where}")
        listed, _ = self.listed(source)
        width = self.random.randint(1, 4)
        if source.key and self.chance(0.4):
            order = f" ORDER BY {source.key}{self.pick('', ' DESC')}{self.limit()}"
            return self.read(f"SELECT {listed} FROM {source.text}{where}{order}", ordered=True)
        listed, _ = self.listed(source, width)
        text = f"SELECT {listed} FROM {source.text}{where}"
        if self.chance(0.1):
            text = f"FROM {source.text} SELECT {listed}{where}"
        return self.read(*self.total(text, width))

    def alone(self) -> Case:
        """A model without a table."""
        text, alias, inputs, output = self.model()
        columns = [*inputs, output]

        def ref(name: str) -> str:
            return self.name(name) if self.chance(0.6) else self.ref(alias, name)

        conditions = []
        for name in inputs:
            form = self.random.randint(0, 4)
            if form == 0:
                one = self.text_literal()
                conditions.append(self.bind(ref(name), self.pick(one, one, "CAST(NULL AS VARCHAR)")))
            elif form == 1:
                query = self.pick("SELECT x FROM t WHERE id < 6", "SELECT nm FROM u", "SELECT upper(p) FROM pq")
                conditions.append(self.bind_query(self.ref(alias, name), query))
            elif form == 2:
                query = self.pick("SELECT min(x) FROM t", "SELECT max(nm) FROM u", "SELECT x FROM t WHERE id = 7")
                conditions.append(self.bind(self.ref(alias, name), f"({query})"))
            else:
                values = [self.text_literal() for _ in range(self.random.randint(1, 3))]
                values += ["NULL"] if self.chance(0.15) else []
                conditions.append(self.bind_list(ref(name), values))
        if self.chance(0.3):
            conditions.append(self.answer_condition(ref(output)))
        where = self.all_of(self.shuffled(conditions))
        where = f"({where})" if self.chance(0.1) else where
        chosen = self.shuffled(columns)[: self.random.randint(1, len(columns))]
        listed = self.pick("*", ", ".join(ref(c) for c in chosen), ", ".join(ref(c) for c in chosen), "count(*)")
        if listed in ("*", "count(*)"):
            return self.read(f"SELECT {listed} FROM {text} WHERE {where}")
        return self.read(*self.total(f"SELECT {listed} FROM {text} WHERE {where}", len(chosen)))

    def named(self) -> Case:
        """An input that takes the column of its own name."""
        source = self.by_name()
        listed, _ = self.listed(source)
        if self.chance(0.3) and source.of("text")[-1].name == "content":
            listed = "*"
        where = self.where(self.conditions(source))
        order = f" ORDER BY {source.key}{self.limit()}" if self.chance(0.4) else ""
        return self.read(f"SELECT {listed} FROM {source.text}{where}{order}", ordered=bool(order))

    def grouped(self) -> Case:
        """Aggregates."""
        source = self.source()
        answer = self.random.choice(source.of("answer") or source.of("text")).ref
        by = self.random.choice(source.of("int", "text")).ref
        key = source.key or by
        aggregates = self.shuffled(
            [
                f"count({answer}) AS {self.name('n')}",
                f"count(DISTINCT {answer}) AS d",
                "count(*) AS c",
                f"max({answer}) AS {self.name('mx')}",
                f"min({by}) AS mn",
                f"string_agg({answer}, ',' ORDER BY {answer}, {key}) AS s",
                f"count(*) FILTER (WHERE {self.answer_condition(answer)}) AS f",
                f"list({answer} ORDER BY {answer}) AS l",
                f"max(length({answer})) AS ml",
                f"arg_max({answer}, {answer}) AS am",
            ]
        )[: self.random.randint(1, 3)]
        where = self.where(self.conditions(source))
        keys, groups = self.random.choice(
            [
                ([by], by),
                ([answer], answer),
                ([answer, by], "ALL"),
                ([answer, by], "1, 2"),
                ([f"length({answer})"], f"length({answer})"),
                ([by, answer], f"ROLLUP ({by}, {answer})"),
                ([by, answer], f"CUBE ({by}, {answer})"),
                ([by, answer], f"GROUPING SETS (({by}), ({answer}), ())"),
                ([], ""),
            ]
        )
        listed = ", ".join([f"{k} AS k{i}" for i, k in enumerate(keys)] + aggregates)
        text = f"SELECT {listed} FROM {source.text}{where}"
        text += f" GROUP BY {groups}" if groups else ""
        if groups and self.chance(0.25):
            text += self.pick(
                " HAVING count(*) > 1", f" HAVING max({answer}) LIKE '%1'", f" HAVING count({answer}) < 9"
            )
        return self.read(*self.total(text, len(keys) + len(aggregates)))

    def windowed(self) -> Case:
        """Windows and QUALIFY."""
        source = self.source()
        answer = self.random.choice(source.of("answer") or source.of("text")).ref
        by = self.random.choice(source.of("int", "text")).ref
        order = f"{answer}, {source.key or by}"
        over = f"(PARTITION BY {self.pick(by, answer)} ORDER BY {order})"
        window = self.pick(
            f"rank() OVER {over}",
            f"max({answer}) OVER (PARTITION BY {by})",
            f"lag({answer}) OVER (ORDER BY {order})",
            f"first_value({answer}) OVER (ORDER BY {order} ROWS BETWEEN 2 PRECEDING AND CURRENT ROW)",
            f"count(*) OVER (PARTITION BY {answer})",
            f"dense_rank() OVER (ORDER BY {answer} DESC)",
            f"count({answer}) OVER (ORDER BY {answer} RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)",
        )
        where = self.where(self.conditions(source))
        text = f"SELECT {by} AS b, {answer} AS a, {window} AS w FROM {source.text}{where}"
        if self.chance(0.3):
            text += self.pick(
                f" QUALIFY dense_rank() OVER (ORDER BY {by}) <= 3",
                f" QUALIFY max({answer}) OVER (PARTITION BY {by}) = {answer}",
                f" QUALIFY rank() OVER {over} = 1",
            )
        elif self.chance(0.2):
            text = text.replace(window, f"rank() OVER {self.name('win')}") + f" WINDOW {self.name('win')} AS {over}"
        return self.read(*self.total(text, 3))

    def distinct(self) -> Case:
        """DISTINCT, and DISTINCT ON in a total order."""
        source = self.source()
        where = self.where(self.conditions(source))
        answers = source.of("answer")
        if source.key and answers and self.chance(0.4):
            by = self.pick(answers[0].ref, self.random.choice(source.of("int")).ref)
            text = f"SELECT DISTINCT ON ({by}) {source.key} AS i, {answers[0].ref} AS a FROM {source.text}{where}"
            return self.read(f"{text} ORDER BY {by}, {source.key}", ordered=True)
        width = self.random.randint(1, 3)
        listed, _ = self.listed(source, width)
        return self.read(*self.total(f"SELECT DISTINCT {listed} FROM {source.text}{where}", width))

    def set_operation(self) -> Case:
        """UNION, INTERSECT, EXCEPT."""
        parts = [self.text_select() for _ in range(self.random.choice([2, 2, 3]))]
        parts = [f"({p})" for p in parts] if self.chance(0.3) else parts
        text = parts[0]
        for part in parts[1:]:
            operator = self.pick(
                "UNION", "UNION ALL", "UNION ALL", "INTERSECT", "EXCEPT", "EXCEPT ALL", "UNION ALL BY NAME"
            )
            text = f"{text} {operator} {part}"
        return self.read(*self.total(text, 1))

    def text_select(self) -> str:
        """A query of one column of text, c0."""
        if self.chance(0.25):
            return f"SELECT nm AS c0 FROM {self.name('u')}"
        source = self.source()
        column = self.random.choice(source.of("answer", "text") or list(source.columns)).ref
        return f"SELECT CAST({column} AS VARCHAR) AS c0 FROM {source.text}{self.where(self.conditions(source))}"

    def with_ctes(self) -> Case:
        """A CTE with a model, read once or twice, beside another model or not; or one that feeds a model."""
        name, kind = self.alias("cte"), self.pick("AS", "AS", "AS MATERIALIZED", "AS NOT MATERIALIZED")
        quoted = self.name(name)
        form = self.random.randint(0, 4)
        if form == 0:
            head = f"WITH {quoted} {kind} ({self.select(self.source(), 2)})"
            text = f"{head} SELECT * FROM {quoted}{self.pick('', ' WHERE c0 IS NOT NULL', ' AS again')}"
            return self.read(*self.total(text, 2))
        if form == 1:
            a, b = self.name(self.alias()), self.name(self.alias())
            head = f"WITH {quoted} {kind} ({self.select(self.source(), 2)})"
            text = f"{head} SELECT {a}.c0, {b}.c1 FROM {quoted} {a} {self.pick('JOIN', 'LEFT JOIN')} {quoted} {b}"
            return self.read(*self.total(f"{text} ON {a}.c0 = {b}.c0", 2))
        if form == 2:
            head = f"WITH {quoted}(key, said) {kind} ({self.select(self.source(), 2)})"
            text = f"{head} SELECT key, count(*) AS n FROM {quoted} GROUP BY key"
            return self.read(*self.total(text, 2))
        inner, inside = "SELECT id, k, x, content FROM t WHERE id < 9", {"id": "int", "x": "text", "content": "text"}
        made = self.alias("cte")
        source = Source(
            f"{self.name(made)}",
            tuple(Column(self.ref(made, n), k, n) for n, k in inside.items()),
            key=self.ref(made, "id"),
        )
        source = self.with_model(source)
        text = f"WITH {self.name(made)} {kind} ({inner}) SELECT {self.listed(source, 2)[0]} FROM {source.text}"
        return self.read(*self.total(text + self.where(self.conditions(source)), 2))

    def nested(self) -> Case:
        """Subqueries in FROM, as generators of SQL stack them."""
        text = self.select(self.source(), 3)
        for _ in range(self.random.randint(1, 3)):
            outer = self.name(self.alias())
            listed = ", ".join(f"{outer}.{self.name(f'c{i}')} AS {self.name(f'c{i}')}" for i in range(3))
            condition = self.pick(
                f"{outer}.{self.name('c0')} IS NOT NULL", "true", f"{outer}.{self.name('c1')} IS NULL"
            )
            condition = f"({condition})" if self.parentheses else condition
            text = self.pick(
                f"SELECT {listed} FROM ({text}) AS {outer}",
                f"SELECT {listed} FROM ({text}) {outer} WHERE {condition}",
                f"SELECT * FROM ({text}) AS {outer} WHERE {condition}",
                f"FROM ({text}) {outer} SELECT {listed}",
                f"SELECT {listed} FROM ({text} ORDER BY ALL LIMIT 7) AS {outer}",
            )
        return self.read(*self.total(text, 3))

    def correlated(self) -> Case:
        """Models in subqueries of SELECT and WHERE."""
        base = self.base()
        text, alias, inputs, output = self.model()
        binds = [self.bind(self.ref(alias, i), self.value(base)) for i in inputs]
        answer = self.ref(alias, output)
        extra = [self.answer_condition(answer)] if self.chance(0.3) else []
        where = self.all_of(self.shuffled(binds + extra))
        loose = self.bind_list(self.ref(alias, inputs[0]), [self.text_literal(), self.text_literal()])
        more = [self.bind(self.ref(alias, i), self.text_literal()) for i in inputs[1:]]
        loose = self.all_of([loose, *more])
        some = self.random.choice(base.of("text")).ref
        conditions = self.conditions(base)
        listed, _ = self.listed(base, 2, aliases=True)
        scalar = f"(SELECT {answer} FROM {text} WHERE {where})"
        form = self.random.randint(0, 6)
        if form <= 1:
            item = self.pick(scalar, f"upper({scalar})", f"coalesce({scalar}, 'none')", f"length({scalar}) + 1")
            listed = f"{listed}, {item} AS a"
        elif form == 2:
            conditions.append(
                f"{self.pick('', 'NOT ')}EXISTS (SELECT {self.pick('1', '*', answer)} FROM {text} WHERE {where})"
            )
        elif form == 3:
            inner = self.ref(alias, inputs[0])
            conditions.append(f"{some} {self.pick('IN', 'NOT IN')} (SELECT {inner} FROM {text} WHERE {loose})")
        elif form == 4:
            conditions.append(f"{some} IN (SELECT {self.pick('lower', '')}({answer}) FROM {text} WHERE {where})")
        elif form == 5:
            conditions.append(f"{self.pick(scalar, f'substr({scalar}, 4)')} {self.pick('LIKE', '=', '<>')} 'p1'")
        else:
            inner = f"SELECT count(*) FROM {text} WHERE {where}"
            listed = f"{listed}, ({inner}) AS n, (SELECT max({answer}) FROM {text} WHERE {loose}) AS mx"
        select = f"SELECT {listed} FROM {base.text}{self.where(conditions)}"
        width = 2 + (1 if form <= 1 else 2 if form == 6 else 0)
        return self.read(*self.total(select, width))

    def pivoted(self) -> Case:
        """PIVOT, in both spellings."""
        source = self.source()
        answer = self.random.choice(source.of("answer") or source.of("text")).ref
        by = source.of("int")[0].ref
        inner = (
            f"SELECT {by} % 3 AS k, {answer} AS a, {by} AS i FROM {source.text}{self.where(self.conditions(source))}"
        )
        text = self.pick(
            f"PIVOT ({inner}) ON k USING count(*) GROUP BY a",
            f"PIVOT ({inner}) ON k IN (0, 1, 2) USING max(a), count(i) GROUP BY i",
            f"SELECT * FROM ({inner}) PIVOT (count(i) FOR k IN (0, 1, 2) GROUP BY a)",
            f"WITH q AS ({inner}) PIVOT q ON k IN (0, 1) USING min(a) GROUP BY i",
            f"FROM (PIVOT ({inner}) ON k IN (0, 1, 2) USING max(a) GROUP BY i)",
        )
        return self.read(text)

    def unpivoted(self) -> Case:
        """UNPIVOT, in both spellings."""
        source = self.source()
        answer = self.random.choice(source.of("answer") or source.of("text")).ref
        other = self.random.choice(source.of("text")).ref
        key = source.key or "1"
        inner = (
            f"SELECT {key} AS i, {answer} AS a, {other} AS b FROM {source.text}{self.where(self.conditions(source))}"
        )
        text = self.pick(
            f"UNPIVOT ({inner}) ON a, b INTO NAME n VALUE v",
            f"SELECT * FROM ({inner}) UNPIVOT (v FOR n IN (a, b))",
            f"FROM ({inner}) UNPIVOT INCLUDE NULLS (v FOR n IN (a, b))",
        )
        return self.read(text)

    def beside(self) -> Case:
        """Joins of other kinds on top of a joined model."""
        query = self.select(self.source(), 2)
        a, u = self.name(self.alias()), self.name("u")
        text = self.pick(
            f"SELECT {a}.c0, {u}.id FROM ({query}) {a} FULL JOIN {u} ON {u}.nm = CAST({a}.c1 AS VARCHAR)",
            f"SELECT {a}.c0, {u}.id FROM {u} RIGHT JOIN ({query}) AS {a} ON {u}.nm = CAST({a}.c0 AS VARCHAR)",
            f"SELECT {u}.id, {a}.c0 FROM {u} LEFT JOIN ({query}) AS {a} ON {u}.nm < CAST({a}.c0 AS VARCHAR)",
            f"SELECT {u}.id, {u}.nm FROM {u} ANTI JOIN ({query}) AS {a} ON {u}.nm = CAST({a}.c0 AS VARCHAR)",
            f"SELECT {a}.c0, {u}.id FROM ({query}) {a} ASOF JOIN {u} ON length(CAST({a}.c1 AS VARCHAR)) >= {u}.id",
            f"SELECT {a}.c0, v FROM ({query}) {a}, unnest([1, 2]) AS g(v)",
            f"SELECT {a}.c0, g.v FROM ({query}) {a} CROSS JOIN LATERAL (SELECT length(CAST({a}.c1 AS VARCHAR)) AS v) g",
        )
        return self.read(*self.total(text, 2))

    # -- statements that write -----------------------------------------------------------------------------

    def made(self) -> Case:
        """CREATE TABLE AS and INSERT, and the number of rows in every use of one query."""
        query = self.select(self.source(), 2)
        form = self.random.randint(0, 3)
        if form == 0:
            return Case([f"CREATE OR REPLACE TABLE sink AS {query}", "SELECT * FROM sink ORDER BY ALL"], ordered=True)
        if form == 1:
            create = self.pick("CREATE OR REPLACE TABLE sink AS", "CREATE OR REPLACE TEMP TABLE sink AS")
            return Case([f"{create} ({query})", "DROP TABLE sink", f"SELECT count(*) AS n FROM ({query})"])
        source = self.source(1)
        if not source.of("answer") or not source.key:
            return Case([f"CREATE OR REPLACE TABLE sink AS WITH q AS ({query}) FROM q", "FROM sink ORDER BY ALL"], True)
        columns = f"{source.key} AS id, {source.of('answer')[0].ref} AS answer"
        query = f"SELECT {columns} FROM {source.text}{self.where(self.conditions(source))}"
        listed = self.pick("", " (id, answer)", " BY NAME")
        return Case(
            [
                "CREATE OR REPLACE TABLE sink (id BIGINT, answer VARCHAR)",
                f"INSERT INTO sink{listed} {query}",
                self.pick("SELECT * FROM sink ORDER BY ALL", "SELECT count(*) FROM sink"),
            ],
            ordered=True,
        )

    def changed(self) -> Case:
        """UPDATE, DELETE and MERGE that read a model."""
        source = self.source(1)
        if not source.of("answer") or not source.key:
            return self.made()
        answer = source.of("answer")[0].ref
        query = f"SELECT {source.key} AS i, max({answer}) AS a FROM {source.text}"
        query += f"{self.where(self.conditions(source))} GROUP BY 1"
        bind = twin("m.content = sink.x", "m.content IS NOT DISTINCT FROM sink.x")
        joined = twin("m.content = v.x", "m.content IS NOT DISTINCT FROM v.x")
        change = self.pick(
            f"UPDATE sink SET x = s.a FROM ({query}) s WHERE s.i = sink.id",
            f"UPDATE sink SET x = (SELECT answer FROM m WHERE {bind}) WHERE id < 6",
            f"UPDATE sink SET x = s.answer FROM (SELECT v.id, m.answer FROM t v JOIN m ON {joined}) s "
            "WHERE s.id = sink.id",
            f"UPDATE sink SET x = m.answer FROM t v JOIN m ON {joined} WHERE v.id = sink.id AND v.id < 7",
            f"DELETE FROM sink WHERE id IN (SELECT i FROM ({query}) s WHERE a LIKE '%1')",
            f"DELETE FROM sink WHERE EXISTS (SELECT 1 FROM m WHERE {bind} AND m.answer LIKE '%2')",
            f"DELETE FROM sink USING ({query}) s WHERE s.i = sink.id AND s.a IS NOT NULL",
            f"DELETE FROM sink USING t v JOIN m ON {joined} WHERE v.id = sink.id AND m.answer LIKE '%3'",
            f"MERGE INTO sink USING ({query}) s ON s.i = sink.id WHEN MATCHED THEN UPDATE SET x = s.a",
            f"MERGE INTO sink USING ({query}) s ON s.i = sink.id + 6 "
            "WHEN NOT MATCHED THEN INSERT (id, x) VALUES (s.i, s.a)",
        )
        return Case(
            ["CREATE OR REPLACE TABLE sink AS SELECT id, x FROM t", change, "FROM sink ORDER BY ALL"], ordered=True
        )

    def viewed(self) -> Case:
        """Views over models."""
        name = self.name(self.alias("view"))
        query = self.select(self.source(), 2)
        create = self.pick(
            f"CREATE VIEW {name} AS", f"CREATE OR REPLACE VIEW {name} AS", f"CREATE VIEW IF NOT EXISTS {name} AS"
        )
        if self.chance(0.2):
            create = f"CREATE VIEW {name}(c0, {self.name('c1')}) AS"
        text = self.pick(
            f"SELECT * FROM {name}",
            f"SELECT count(*) AS n, 1 AS one FROM {name}",
            f"SELECT c1, count(*) AS n FROM {name} GROUP BY ALL",
            f"SELECT a.c0, b.c1 FROM {name} a JOIN {name} b ON a.c0 = b.c0",
        )
        read, ordered = self.total(text, 2)
        return Case([f"DROP VIEW IF EXISTS {name}", f"{create} {query}", read], ordered)
