"""`EtcdLease`: the lease of this process. etcd deletes the keys on it when it is not renewed for its TTL."""

from __future__ import annotations

import asyncio

from dynamo_fast.config import EtcdConfig
from dynamo_fast.discovery.background import FIRST_RETRY
from dynamo_fast.discovery.etcd_client import CALL_TIMEOUT, EtcdClient, Refused
from dynamo_fast.discovery.etcd_messages import LeaseAnswer
from dynamo_fast.errors import CannotConnect
from dynamo_fast.logs import get_logger

__all__ = ["NOT_FOUND", "EtcdLease"]

logger = get_logger(__name__)

NOT_FOUND = 5
"""gRPC's code for a lease that does not exist (any more)."""


class EtcdLease:
    """One lease: asked for, renewed, asked for again after a loss, revoked.

    Owns the id, which is the connection id of the process. Owned by an `EtcdStore` and used in its thread; ends with
    `revoke`, or expires.
    """

    def __init__(self, client: EtcdClient, config: EtcdConfig) -> None:
        self.id = 0
        """0 until `begin` has returned."""
        self._client = client
        self._ttl = config.lease_ttl
        self._startup_timeout = config.startup_timeout

    async def begin(self) -> None:
        """Ask for a new lease until etcd grants one. Raises CannotConnect after `startup_timeout` seconds, Refused."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._startup_timeout
        while True:
            try:
                timeout = min(CALL_TIMEOUT, max(0.1, deadline - clock()))
                answer = await self._client.call("lease/grant", {"TTL": str(self._ttl)}, LeaseAnswer, timeout)
                self.id = answer.ID
                return
            except Refused:
                raise
            except CannotConnect as error:
                if clock() + FIRST_RETRY >= deadline:
                    raise CannotConnect(
                        f"etcd startup connection timed out after {self._startup_timeout:g} seconds"
                    ) from error
            await asyncio.sleep(FIRST_RETRY)

    async def renew(self) -> None:
        """Begin its TTL anew; ask for it again if it was lost. Raises CannotConnect."""
        timeout = min(CALL_TIMEOUT, self._ttl / 3)
        answer = await self._client.call("lease/keepalive", {"ID": str(self.id)}, LeaseAnswer, timeout)
        if answer.TTL <= 0:
            logger.warning("the lease %x was lost: asking for it again", self.id)
            await self.regain()

    async def regain(self) -> None:
        """Ask for the same id again. Raises CannotConnect."""
        try:
            await self._client.call("lease/grant", {"ID": str(self.id), "TTL": str(self._ttl)}, LeaseAnswer)
        except Refused as refusal:
            if "already exists" not in str(refusal):
                raise

    async def revoke(self, timeout: float) -> None:
        """Give it back: etcd deletes its keys. Raises CannotConnect if it is left to expire."""
        try:
            await self._client.call("lease/revoke", {"ID": str(self.id)}, dict, timeout)
        except Refused as refusal:
            if refusal.code != NOT_FOUND:  # it expired
                raise
