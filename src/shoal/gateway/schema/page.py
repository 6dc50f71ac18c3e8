"""A page of a list, in the form of OpenAI's API."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.errors import InvalidRequest


@dataclass(frozen=True)
class Page:
    after: str = ""
    """The id of the last item of the previous page; empty: from the first one on."""
    limit: int = 20
    newest_first: bool = True

    def rows(self, db: sqlite3.Connection, table: str, columns: str, where: Mapping[str, str]) -> tuple[list[Any], bool]:
        """Rows of a table that has `id` and an increasing `seq`, and whether there are more. Raises InvalidRequest for an
        unknown `after`.

        where: column → value
        """
        conditions, values = [f"{column} = ?" for column in where], list[Any](where.values())
        if self.after:
            at = db.execute(f"SELECT seq FROM {table} WHERE {' AND '.join(['id = ?', *conditions])}", [self.after, *values]).fetchone()
            if at is None:
                raise InvalidRequest(f"'{self.after[:64]}' is not in the list", "after")
            conditions.append("seq < ?" if self.newest_first else "seq > ?")
            values.append(at[0])
        order = "DESC" if self.newest_first else "ASC"
        query = f"SELECT {columns} FROM {table} WHERE {' AND '.join(conditions)} ORDER BY seq {order} LIMIT ?"
        rows = db.execute(query, [*values, self.limit + 1]).fetchall()
        return rows[: self.limit], len(rows) > self.limit


@dataclass(frozen=True)
class Paging:
    """The parameters of a list query."""

    default: int
    most: int
    order: bool = False
    """Whether the order of the list may be reversed."""
    beside: Sequence[str] = ()
    """Other parameters of the endpoint, all texts."""

    @property
    def schemas(self) -> dict[str, dict[str, Any]]:
        """Of each parameter, for the OpenAPI document."""
        known: dict[str, dict[str, Any]] = {"after": {"type": "string"}}
        known["limit"] = {"type": "integer", "minimum": 1, "maximum": self.most, "default": self.default}
        if self.order:
            known["order"] = {"enum": ["asc", "desc"], "default": "desc"}
        return {**known, **{name: {"type": "string"} for name in self.beside}}

    def page(self, query: Iterable[tuple[str, str]]) -> Page:
        """The page that a query asks for. Raises InvalidRequest."""
        given = dict(query)
        if unknown := given.keys() - self.schemas:
            raise InvalidRequest(f"unknown parameter '{min(unknown)}'", min(unknown), "unknown_parameter")
        limit = given.get("limit", str(self.default))
        if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= self.most):
            raise InvalidRequest(f"limit must be a number from 1 to {self.most}", "limit")
        if given.get("order", "desc") not in ("asc", "desc"):
            raise InvalidRequest("order must be asc or desc", "order")
        return Page(given.get("after", ""), int(limit), given.get("order") != "asc")


def listed(objects: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    first, last = (objects[0]["id"], objects[-1]["id"]) if objects else (None, None)
    return {"object": "list", "data": list(objects), "first_id": first, "last_id": last, "has_more": has_more}
