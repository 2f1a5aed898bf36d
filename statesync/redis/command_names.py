"""The commands of Redis 7.0 that this package does not carry out, so that their error can say so."""

from typing import Final

_NAMES: Final = """
    acl asking auth bgrewriteaof bgsave bitcount bitfield bitfield_ro bitop bitpos blmove blmpop blpop brpop
    brpoplpush bzmpop bzpopmax bzpopmin client cluster command config copy dbsize debug discard dump echo
    eval_ro evalsha_ro exec failover fcall fcall_ro flushall flushdb function geoadd geodist geohash geopos
    georadius georadius_ro georadiusbymember georadiusbymember_ro geosearch geosearchstore getbit hello
    hrandfield hscan info keys lastsave latency lcs lindex linsert llen lmove lmpop lolwut lpop lpos lpush
    lpushx lrange lrem lset ltrim migrate module monitor move msetnx multi pfadd pfcount pfdebug pfmerge
    pfselftest ping psubscribe psync publish pubsub punsubscribe quit randomkey readonly readwrite rename
    renamenx replconf replicaof reset restore restore-asking role rpop rpoplpush rpush rpushx save scan script
    sdiff sdiffstore select setbit shutdown sinter sintercard sinterstore slaveof slowlog smove sort sort_ro
    spop spublish srandmember sscan ssubscribe subscribe sunion sunionstore sunsubscribe swapdb sync time
    unsubscribe unwatch wait watch xack xadd xautoclaim xclaim xdel xgroup xinfo xlen xpending xrange xread
    xreadgroup xrevrange xsetid xtrim zadd zcard zcount zdiff zdiffstore zincrby zinter zintercard zinterstore
    zlexcount zmpop zmscore zpopmax zpopmin zrandmember zrange zrangebylex zrangebyscore zrangestore zrank zrem
    zremrangebylex zremrangebyrank zremrangebyscore zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan
    zscore zunion zunionstore
"""

NOT_SUPPORTED: Final = frozenset(_NAMES.upper().encode().split())
"""Upper case. The port carries out some of them itself: those on connections, transactions and several keys."""
SUBCOMMANDS_NOT_SUPPORTED: Final = frozenset(
    {b"OBJECT HELP", b"MEMORY DOCTOR", b"MEMORY HELP", b"MEMORY MALLOC-STATS", b"MEMORY PURGE", b"MEMORY STATS"}
)
