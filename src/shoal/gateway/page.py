"""A page of a list, as OpenAI's API cuts one."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.errors import InvalidRequest


@dataclass(frozen=True)
class Page:
    after: str = ""
    """The id of the last one that was seen; empty: from the first one on."""
    limit: int = 20
    newest_first: bool = True

    def rows(self, db: sqlite3.Connection, table: str, columns: str, where: Mapping[str, str]) -> tuple[list[Any], bool]:
        """Rows of a table that has `id` and counts up `seq`, and whether there are more. Raises InvalidRequest for an unknown `after`.

        where: column → value
        """
        conditions, values = [f"{column} = ?" for column in where], list[Any](where.values())
        if self.after:
            at = db.execute(f"SELECT seq FROM {table} WHERE {' AND '.join(['id = ?', *conditions])}", [self.after, *values]).fetchone()
            if at is None:
                raise InvalidRequest(f"'{self.after[:64]}' is none of the list", "after")
            conditions.append("seq < ?" if self.newest_first else "seq > ?")
            values.append(at[0])
        order = "DESC" if self.newest_first else "ASC"
        query = f"SELECT {columns} FROM {table} WHERE {' AND '.join(conditions)} ORDER BY seq {order} LIMIT ?"
        rows = db.execute(query, [*values, self.limit + 1]).fetchall()
        return rows[: self.limit], len(rows) > self.limit


def asked(query: Iterable[tuple[str, str]], *, default: int, most: int, order: bool = False, beside: Sequence[str] = ()) -> Page:
    """The page that a query names. Raises InvalidRequest.

    order: whether the list may be turned round
    beside: other parameters that the endpoint knows
    """
    given = dict(query)
    if unknown := set(given) - {"after", "limit", *(("order",) if order else ()), *beside}:
        raise InvalidRequest(f"unknown parameter '{min(unknown)}'", min(unknown), "unknown_parameter")
    limit = given.get("limit", str(default))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 9 and 1 <= int(limit) <= most):
        raise InvalidRequest(f"limit is a number from 1 to {most}", "limit")
    if given.get("order", "desc") not in ("asc", "desc"):
        raise InvalidRequest("order is asc or desc", "order")
    return Page(given.get("after", ""), int(limit), given.get("order") != "asc")


def listed(objects: Sequence[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    first, last = (objects[0]["id"], objects[-1]["id"]) if objects else (None, None)
    return {"object": "list", "data": list(objects), "first_id": first, "last_id": last, "has_more": has_more}
