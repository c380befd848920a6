"""A small order book in SQLite, so that the demo's tools have a database to ask."""

from __future__ import annotations

import sqlite3

_ORDERS = [
    ("A-1001", "ada@example.com", "LAMP-OAK", 2),
    ("A-1002", "grace@example.com", "DESK-180", 1),
    ("A-1003", "ada@example.com", "CHAIR-R", 4),
    ("A-1004", "alan@example.com", "LAMP-OAK", 1),
]
_STOCK = {"LAMP-OAK": 17, "DESK-180": 3, "CHAIR-R": 0}


def open_database() -> sqlite3.Connection:
    """Return a database in memory with a few orders and stock levels in it."""
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.execute("CREATE TABLE orders (id TEXT, customer TEXT, sku TEXT, quantity INTEGER)")
    database.execute("CREATE TABLE stock (sku TEXT PRIMARY KEY, quantity INTEGER)")
    database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", _ORDERS)
    database.executemany("INSERT INTO stock VALUES (?, ?)", _STOCK.items())
    return database
