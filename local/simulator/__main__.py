"""`python -m local.simulator --http-port N --smtp-port M --data-dir D --maildir MD [--apns-port N]`: run the vendors.

Ready means: the log is repaired and indexed, the Maildir complete, the credentials written, every port open.
May import everything of this package. Never: a wire format.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import signal
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from local.simulator import (
    APNS_KEY_FILE,
    apns,
    aws,
    bulksms,
    fcm,
    hooks,
    mailgun,
    onesignal,
    sendgrid,
    smtp,
    twilio,
    vonage,
    webpush,
)
from local.simulator.callbacks import Callbacks, add_callback_routes
from local.simulator.control import add_control_routes
from local.simulator.faults import FaultBook
from local.simulator.ground_truth import GroundTruth, GroundTruthError
from local.simulator.maildir import MaildirDelivery
from local.simulator.reports import EventsKey
from local.simulator.state import SimulatorState
from runtime.health import add_health_routes
from runtime.logs import configure_logs, get_logger

KINDS = (
    *(smtp.KIND, twilio.KIND, fcm.KIND, apns.KIND),
    *(sendgrid.KIND, mailgun.KIND, vonage.KIND, bulksms.KIND, onesignal.KIND, webpush.KIND, aws.SES, aws.SNS),
    *hooks.KINDS,
)


async def serve(
    host: str, http_port: int, smtp_port: int, apns_port: int | None, data_dir: Path, maildir: Path
) -> None:
    """Serve until SIGTERM or SIGINT. Raises GroundTruthError, CredentialsError, ApnsKeyError or OSError when it cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    truth = GroundTruth(data_dir / "accepted.jsonl")
    delivery = MaildirDelivery(maildir, truth)
    delivery.start()
    credentials = fcm.Credentials.load_or_create(data_dir / "fcm-credentials.json", f"http://{host}:{http_port}/token")
    apns_key = apns.ProviderKey.load_or_create(data_dir / APNS_KEY_FILE)
    state = SimulatorState(truth, FaultBook(KINDS))
    callbacks, events_key = Callbacks(), EventsKey.load_or_create(data_dir / "sendgrid-events-key.pem")
    app = web.Application(client_max_size=1 << 20)
    add_health_routes(app, lambda: truth.broken or delivery.problem())
    add_control_routes(app, state)
    keys = {
        sendgrid.KIND: {"events_key": events_key.public},
        **{kind: {} for kind in (mailgun.KIND, vonage.KIND, bulksms.KIND, onesignal.KIND, aws.SES)},
    }
    add_callback_routes(app, callbacks, keys)
    twilio.add_twilio_routes(app, state, callbacks)
    fcm.add_fcm_routes(app, state, credentials)
    sendgrid.add_sendgrid_routes(app, state, callbacks, events_key)
    mailgun.add_mailgun_routes(app, state, callbacks)
    vonage.add_vonage_routes(app, state, callbacks)
    bulksms.add_bulksms_routes(app, state, callbacks)
    onesignal.add_onesignal_routes(app, state, callbacks)
    webpush.add_webpush_routes(app, state)
    aws.add_aws_routes(app, state, callbacks)
    hooks.add_hook_routes(app, state)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
    await runner.setup()
    try:
        servers = [await loop.create_server(lambda: smtp.SmtpSession(state), host, smtp_port, backlog=512)]
        if apns_port is not None:
            servers.append(
                await loop.create_server(lambda: apns.ApnsSession(state, apns_key), host, apns_port, backlog=512)
            )
        await web.TCPSite(runner, host, http_port, backlog=512).start()
        get_logger(__name__).info("simulator ready", http_port=http_port, smtp_port=smtp_port, accepted=truth.last_seq)
        await stop.wait()
        for server in servers:
            server.close()
    finally:
        await runner.cleanup()
        await callbacks.close()
        delivery.close()
        truth.close()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(
        description="The vendors of the local stack: SMTP, APNs, and those that speak HTTP."
    )
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--smtp-port", type=int, required=True)
    parser.add_argument("--apns-port", type=int, help="HTTP/2 without TLS; without it there is no APNs")
    parser.add_argument("--data-dir", type=Path, required=True, help="the log of accepts and the credentials")
    parser.add_argument("--maildir", type=Path, required=True, help="where accepted mail is delivered")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    args = parser.parse_args()
    if not ipaddress.ip_address(args.host).is_loopback:
        parser.error("any client may send through the simulator: --host must be a loopback address")
    configure_logs("simulator")
    try:
        uvloop.run(serve(args.host, args.http_port, args.smtp_port, args.apns_port, args.data_dir, args.maildir))
    except (GroundTruthError, fcm.CredentialsError, apns.ApnsKeyError, OSError) as error:
        get_logger(__name__).error("the simulator cannot run", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
