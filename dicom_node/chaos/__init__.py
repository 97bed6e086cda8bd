"""A rehearsal of the worst night: scanners push studies while everything around them is killed, cut and filled.

The listing is the journey::

    plan      pure: from a seed, what is scanned and which blows fall
    scans     the plan's images, as files
    scanner   re-sends until 0x0000
    servers   broker, database, PACS as processes that can be killed; pacs, orthanc: which PACS
    wire      TCP connections that can be silenced or torn
    disk      a small disk that can be filled
    struck    the node's own programs, with a hand on their clock and on their most delicate moments
    world     all of it, up and kept up
    blows     a blow of the plan, dealt to the world
    verdict   what was promised, held against what lies there afterwards
    rehearse  the play: table while it runs, summary at the end

It runs on a home of its own and never on one that holds anything.
"""
