"""The keys of the demo's players: the application's, and the operator on duty's."""

from __future__ import annotations

import secrets

from meta_agent.access import hash_password
from meta_agent.secrets import derive, installation_secret, write_secret
from meta_agent.settings import Settings
from storage import identities
from storage.database import Database
from storage.vocabulary import Role

NIGHT_SHIFT = "night-shift"


async def issue(url: str, settings: Settings) -> None:
    """Make the keys and keep them in files that only the owner can read."""
    secret = installation_secret(settings.home)
    database = Database(url, pool_size=1)
    try:
        async with database.transaction() as connection:
            application = await identities.ensure_key(
                connection,
                key_id="story-teller",
                secret=derive(secret, "demo-application-key"),
                name="story-teller (demo application)",
                scopes=["infer", "inspect"],
                use_cases=["story-teller"],
            )
            # A password that nobody knows: this operator comes by key only.
            await identities.ensure_user(
                connection,
                name=NIGHT_SHIFT,
                password_hash=hash_password(secrets.token_hex(24)),
                role=Role.APPROVER,
            )
            operator = await identities.ensure_key(
                connection,
                key_id=NIGHT_SHIFT,
                secret=derive(secret, "demo-operator-key"),
                name="operator on duty (demo)",
                scopes=["read", "operate", "approve"],
                acts_as=NIGHT_SHIFT,
            )
    finally:
        await database.close()
    write_secret(settings.home / "keys" / "story-teller.key", application)
    write_secret(settings.home / "keys" / f"{NIGHT_SHIFT}.key", operator)
