"""Checks of the sessions: one for each client, their beginnings and ends, and what must stay private."""

from __future__ import annotations

from collections.abc import Iterator

from .driver import MODERN, SECRETS
from .evidence import Check, Evidence, at_least_one, equal
from .views import END_REASON, SESSION_ENDED, SESSION_RESUMED, SESSION_STARTED


def sessions(evidence: Evidence) -> Iterator[Check]:
    """Compare the clients with the sessions."""
    telemetry, documents = evidence.telemetry, [s.document for s in evidence.sessions]
    malformed = evidence.malformed
    yield Check(
        "each document in Redis has the promised fields",
        f"{len(malformed)} have not",
        not malformed,
    )
    yield equal(
        "each client has one session",
        len(documents),
        len(evidence.tally.clients),
    )
    yield equal(
        "each client is found by its name",
        len({document.client_name for document in documents} & evidence.tally.clients),
        len(evidence.tally.clients),
    )
    yield at_least_one(
        f"there are sessions of clients of revision {MODERN}, which sends no session id",
        sum(document.protocol_version == MODERN for document in documents),
    )
    yield equal(
        f"each session is counted in {SESSION_STARTED}",
        telemetry.total(SESSION_STARTED),
        len(documents),
    )


def lifecycle(evidence: Evidence) -> Iterator[Check]:
    """Look for a session that was resumed, and for both kinds of end."""
    telemetry = evidence.telemetry
    yield at_least_one(
        f"the session that went on after the restart is counted in {SESSION_RESUMED}",
        telemetry.total(SESSION_RESUMED),
    )
    for reason, meaning in (("client_delete", "deleted by its client"), ("expired", "was left to expire")):
        yield at_least_one(
            f"the session that {meaning} is counted in {SESSION_ENDED}",
            telemetry.total(SESSION_ENDED, {END_REASON: reason}),
        )
    hours = [seen.expires_in for seen in evidence.sessions if seen.document.ended is None]
    yield at_least_one(
        "a session of before the restart is kept for an hour from its last activity",
        sum(left is not None and 3000 < left <= 3600 for left in hours),
    )
    yield equal(
        f"each of these ends is an event as well, as many as {SESSION_ENDED} counts",
        len(telemetry.events("session.end")),
        telemetry.total(SESSION_ENDED),
    )


def discretion(evidence: Evidence) -> Iterator[Check]:
    """Look for ids where they cost too much, and for content anywhere."""
    telemetry = evidence.telemetry
    ids = {session.session_id for session in evidence.sessions}
    points = telemetry.points()
    exported = repr((telemetry.spans(), points, telemetry.logs()))
    stored = "".join(session.text for session in evidence.sessions)
    labelled = [point for point in points if ids & set(map(str, point.attributes.values()))]
    leaked = [secret for secret in SECRETS if secret in exported or secret in stored]
    yield Check("no metric has a session id among its attributes", f"{len(labelled)}", not labelled)
    yield Check("no argument and no error text is exported or stored", f"{len(leaked)}", not leaked)
