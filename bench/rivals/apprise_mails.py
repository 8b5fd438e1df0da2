"""The same mails through Apprise, on twenty threads: `python -m bench.rivals.apprise_mails PORT COUNT`.

Text alone, already rendered: the least it can be asked. Prints what bench.rivals.mails prints.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import apprise

THREADS = 20


def main(port: int, count: int) -> None:
    def send(number: int) -> bool:
        to = f"mailto://127.0.0.1:{port}/?from=shop@example.org&to=u{number}@example.org&mode=insecure"
        one = apprise.Apprise()
        return one.add(to) and bool(one.notify(title=f"Order A-{number:07} is on its way", body="Hello Ada, it left."))

    began, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(THREADS) as threads:
        sent = sum(threads.map(send, range(count)))
    used = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu, "sent": sent}
    sys.stdout.write(json.dumps(used) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
