"""The error replies that Redis and Valkey document, by what they mean: they pass, memory is full, they never pass."""

from __future__ import annotations

REPLIES: dict[str, list[str]] = {
    "not now": [
        "LOADING Redis is loading the dataset in memory",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "MISCONF Errors writing to the AOF file: No space left on device",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "NOREPLICAS Not enough good replicas to write.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "READONLY You can't write against a read only replica.",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN The cluster is down",
        "EXECABORT Transaction discarded because of previous errors.",
        "EXECABORT Transaction discarded because of: MISCONF Errors writing to the AOF file: No space left on device",
        "BUSYKEY Target key name already exists.",
        "REDIRECT 127.0.0.1:6381",
        "NOSCRIPT No matching script. Please use EVAL.",
        "UNKILLABLE The busy script was sent by a master instance in the context of replication",
        "NOGOODSLAVE No suitable replica to promote",
        "INPROG Failover already in progress",
        "IOERR error or timeout reading from target instance",
        "ERR max number of clients reached",
        "ERR max daily request limit exceeded",
        "ERR Error running script (call to f_ab12): @user_script:1: Script killed by user with SCRIPT KILL...",
        "ERR Error compiling script or Script killed by user with SCRIPT KILL. script: ab12, on @user_script:1.",
    ],
    "full": [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "OOM command not allowed when used memory > 'maxmemory'. script: ab12, on @user_script:1.",
        "EXECABORT Transaction discarded because of: OOM command not allowed when used memory > 'maxmemory'.",
    ],
    "never": [
        "NOPERM this user has no permissions to run the 'evalsha' command",
        "NOPERM No permissions to access a key",
        "ERR ACL failure in script: User default has no permissions to run the 'get' command script: ab12, on "
        "@user_script:97.",
        "NOAUTH Authentication required.",
        "WRONGPASS invalid username-password pair or user is disabled.",
        "MOVED 3999 127.0.0.1:6381",
        "ASK 3999 127.0.0.1:6381",
        "CROSSSLOT Keys in request don't hash to the same slot",
        "DENIED Redis is running in protected mode",
        "ERR unknown command 'EVALSHA', with args beginning with: 'x'",
        "ERR Unknown Redis command called from script",
        "ERR DB index is out of range",
        "ERR SELECT is not allowed in cluster mode",
        "ERR Script attempted to access a non local key in a cluster node",
    ],
}
ALL = [(kind, reply) for kind, replies in REPLIES.items() for reply in replies]
