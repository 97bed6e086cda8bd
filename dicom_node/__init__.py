"""What happens to a study: scanner -> C-STORE -> spool -> queue -> labels -> Structured Report -> PACS.

The listing is the journey::

    cli         the commands
    settings    the only reader of the configuration file and the environment
    receive     C-ECHO and C-STORE SCP: who may come in; bytes -> spool -> 0x0000
    spool       the disk: temporary file, fsync, rename; alone in touching the studies' files
    ledger      the truth about studies, reports and deliveries (SQL)
    completion  pure: is this study complete?
    watch       spool and ledger -> completion -> bell
    tasks       the Celery app; a task takes an id
    worker      a process that takes tasks, with its watchdog and signs of life (notify)
    pipeline    prepare while images come; open -> label -> report -> settle
    reading     images -> planes, decoded in children, kept ahead (planes)
    report      labels -> TID 1500 Structured Report, pure
    uids        our UIDs, derived so that the same input gives the same object
    deliver     claim -> gate -> send -> settle
    send        C-STORE SCU: what is sent, and what the answer means
    call        associations that we open, TLS, kept for the next object
    health      what stands still, grows or disagrees

Imports run down this list only; `pipeline`, `reading` and `report` alone know `labeler`, and nothing that receives
loads torch.
"""

__version__ = "0.1.0"
