"""The role `bounces`: mails that came back are read from the mailboxes of accounts, told, and only then moved and marked.

    | the mail                                        | told                        | afterwards                         |
    |-------------------------------------------------|-----------------------------|------------------------------------|
    | a report of ours, and final                     | receipt and status          | moved to done_folder, \\Seen there  |
    | a report of ours, not final, or too old to know | receipt                     | the same                           |
    | what it is about is not known yet               | nothing                     | stays; looked at again             |
    | no word of ours, one with a wrong HMAC, no mail | nothing; counted            | stays, unseen, for a person        |

Receipts are acknowledged before statuses, and statuses before anything is moved: a process that ends in between reads the mail again, and
all ids are the same again. Nothing is ever deleted.
May import runtime and vendors. Never: IMAP, a mail's parts.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

from producers.callbacks.records import fact_record, receipt_of, receipt_record
from runtime.callbacks import Subject
from runtime.clock import Clock, system_clock
from runtime.errors import PublishError, SettingsError, TooLargeError
from runtime.kafka.producer import Producer
from runtime.logs import get_logger
from runtime.metrics import BOUNCE_MAILBOX_DOWN, BOUNCE_MAILS, BOUNCE_MAILS_WAITING
from runtime.process import Context, crash_point
from runtime.records import ProducerRecord
from runtime.references import RETENTION_S, ReferenceView, reference_key, subject_of_reference
from runtime.views import View, caught_up, open_store, start_views
from schemas.events import Reference
from schemas.topics import REFERENCES
from vendors.bounces import BounceAccount
from vendors.registry import create_bounce_accounts
from vendors.smtp.dsn import UNREADABLE, Reading, read_bounce
from vendors.smtp.mailbox import Mailbox, MailboxError

BATCH = 32
"""Mails read, told and moved together: 8 MiB at most."""
KEPT = 100_000
"""UIDs of mails that stay, known not to be looked at again; after a restart they are."""

log = get_logger("bounces")

Publish = Callable[[Sequence[ProducerRecord]], None]


class BounceReader:
    """Reads one mailbox; `poll` belongs to one thread. `crash_here` gets the name of each step: the fault tests end the process there."""

    def __init__(
        self,
        account: BounceAccount,
        references: ReferenceView,
        publish: Publish,
        tenants: Sequence[str] = (),
        *,
        clock: Clock = system_clock,
        crash_here: Callable[[str], None] = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
        open_mailbox: Callable[[BounceAccount], Mailbox] = Mailbox,
    ) -> None:
        """`tenants`: for whom the account sends. `publish`: acknowledged, or raises PublishError."""
        self._account, self._references, self._publish, self._tenants = account, references, publish, tenants
        self._clock, self._crash_here, self._stopping, self._open = clock, crash_here, stopping, open_mailbox
        self._stay = OrderedDict[tuple[int, int], None]()

    def poll(self) -> Counter[str]:
        """Read all that waits; how many mails came to what. Raises MailboxError, PublishError."""
        seen = Counter[str]()
        with self._open(self._account) as mailbox:
            waiting = mailbox.waiting()
            BOUNCE_MAILS_WAITING.labels(self._account.name).set(len(waiting))
            todo = [uid for uid in waiting if (mailbox.validity, uid) not in self._stay]
            for start in range(0, len(todo), BATCH):
                if self._stopping():
                    break
                seen += self._batch(mailbox, todo[start : start + BATCH])
            BOUNCE_MAILS_WAITING.labels(self._account.name).set(len(mailbox.waiting()))
            mailbox.mark_done()
        return seen

    def _batch(self, mailbox: Mailbox, uids: Sequence[int]) -> Counter[str]:
        now, seen = self._clock(), Counter[str]()
        told, receipts, facts = [], [], []
        for uid, raw in mailbox.read(uids).items():
            outcome, reports = self._read(raw, now)
            if outcome == "read":
                outcome = "noted"
                told.append(uid)
                for report in reports:
                    receipts.append(receipt_record(receipt_of(report, raw, now, self._tenants)))
                    if report.final and report.subject.attempt_ref is not None:
                        facts.append(fact_record(report, report.subject.attempt_ref, now))
                        outcome = "stated"
                    elif report.final and outcome != "stated":
                        outcome = "no_message"
            elif outcome != "waits":
                self._remember(mailbox.validity, uid)
            seen[outcome] += 1
        if receipts:
            self._publish(receipts)
            self._crash_here("after_receipt")
        if facts:
            self._publish(facts)
        self._crash_here("before_mails_are_moved")
        mailbox.move(told)
        self._crash_here("after_mails_are_moved")
        for outcome, count in seen.items():
            BOUNCE_MAILS.labels(self._account.name, outcome).inc(count)
        return seen

    def _read(self, raw: bytes, now: int) -> Reading:
        try:
            return read_bounce(raw, self._account, now, self._find)
        except Exception as exc:  # noqa: BLE001 one mail must not end the reading of all others; its words are a stranger's
            log.error("mail cannot be read", provider=self._account.name, error=type(exc).__name__)
            return UNREADABLE

    def _find(self, message_id: str) -> Subject | None:
        found = self._references.get(reference_key(self._account.name, message_id))
        return None if found is None else subject_of_reference(found)

    def _remember(self, validity: int, uid: int) -> None:
        self._stay[validity, uid] = None
        if len(self._stay) > KEPT:
            self._stay.popitem(last=False)


async def follow_mailbox(reader: BounceReader, account: BounceAccount, stopping: asyncio.Event) -> None:
    """Poll until `stopping`; a mailbox or a broker that is away is tried again."""
    down = False
    while not stopping.is_set():
        try:
            seen = await asyncio.to_thread(reader.poll)
        except (MailboxError, PublishError, TooLargeError) as exc:
            if not down:
                log.error("bounces are not read", provider=account.name, error=str(exc))
            down = True
        else:
            if down:
                log.info("bounces are read again", provider=account.name)
            down = False
            if stayed := seen["forged"] + seen["unmatched"] + seen["unreadable"]:
                log.warning("mails stay in the mailbox of bounces", provider=account.name, count=stayed)
        BOUNCE_MAILBOX_DOWN.labels(account.name).set(down)
        try:
            await asyncio.wait_for(stopping.wait(), account.keys.poll_s)
        except TimeoutError:
            continue


async def run_bounces(context: Context) -> None:
    """The role. Raises SettingsError."""
    settings = context.settings
    accounts = create_bounce_accounts(settings.providers)
    if not accounts:
        raise SettingsError("no account has bounces = {...}: add them to one of the kinds smtp and gmail")
    tenants = {provider.name: provider.tenants for provider in settings.providers}
    producer = Producer(settings.kafka, client_id="bounces")
    store = open_store(settings.views, context.role, REFERENCES, RETENTION_S)
    references: View[Reference] = View(settings.kafka, REFERENCES, store=store, publish=producer.publish)
    start_views([references], context.health)
    try:
        if not await caught_up([references], context.stopping):
            return
        context.health.started()
        readers = [
            BounceReader(
                account,
                references,
                producer.publish,
                tenants[account.name],
                crash_here=lambda name: crash_point(name, settings.crash_at),
                stopping=context.stopping.is_set,
            )
            for account in accounts
        ]
        await asyncio.gather(
            *(
                follow_mailbox(reader, account, context.stopping)
                for reader, account in zip(readers, accounts, strict=True)
            )
        )
    finally:
        references.close()
        await asyncio.to_thread(producer.close)
