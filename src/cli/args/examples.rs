//! What `--help` says behind the options: examples, and what one has to know.

pub(super) const TOP_EXAMPLES: &str = "\
Examples:
  ringmain demo                          see it work; needs no daemon
  ringmain serve &                       start the daemon
  ringmain queue create orders           make a queue
  seq 3 | ringmain publish orders        three messages
  ringmain consume orders --drain        and out again

  ringmain serve --data-dir /var/lib/ringmain &
  ringmain queue create jobs --durable   a queue that survives the machine
  seq 3 | ringmain publish jobs --receipts

Exit codes: 0 ok, 64 usage, 65 bad data or not found, 69 daemon unavailable, 70 internal,
73 exists, 74 I/O, 75 time-out or full, 77 not permitted, 78 configuration.";

pub(super) const DEMO_EXAMPLES: &str = "\
Examples:
  ringmain demo
  ringmain demo --json
  ringmain demo --file records.ndjson.gz --slot-size 64

Takes about 45 seconds at most: when the time is over, no pass but the first goes on. In the durable part keeper and \
broker are killed with SIGKILL in the middle and started again on the same journal, which lies in the folder of \
temporary files (TMPDIR).

Exits with 65 if a record was lost, doubled or altered.";

pub(super) const SERVE_EXAMPLES: &str = "\
Examples:
  ringmain serve
  ringmain serve --socket /tmp/test.sock --limit-bytes 256MiB
  ringmain serve --config limits.json
  ringmain serve --data-dir /var/lib/ringmain
  ringmain serve --data-dir /var/lib/ringmain --journal-backend blocking --segment-size 16MiB

A configuration: {\"limit_queues\": 64, \"limit_bytes\": \"4GiB\", \"limit_handles\": 256}

Prints one line that begins with 'ready' when it accepts connections. SIGTERM stops it: what it has \
taken is made durable first. The rings outlive the broker process: when it dies, it is started again and takes them \
over.";

pub(super) const UPGRADE_EXAMPLES: &str = "\
Examples:
  ringmain upgrade
  ringmain upgrade --binary /usr/local/bin/ringmain";

pub(super) const STATUS_EXAMPLES: &str = "\
Examples:
  ringmain status
  ringmain status --json | jq .uptime";

pub(super) const LIST_EXAMPLES: &str = "\
Examples:
  ringmain queue list
  ringmain queue list --json | jq -r '.[].name'";

pub(super) const INFO_EXAMPLES: &str = "\
Examples:
  ringmain queue info orders
  ringmain queue info orders --json | jq .used_slots
  ringmain queue info gauges --json | jq .dropped";

pub(super) const DELETE_EXAMPLES: &str = "\
Examples:
  ringmain queue delete orders
  ringmain queue delete orders --if-exists";

pub(super) const PURGE_EXAMPLES: &str = "\
Examples:
  ringmain queue purge orders
  ringmain queue purge orders --json | jq .messages";

pub(super) const DOCTOR_EXAMPLES: &str = "\
Examples:
  ringmain doctor
  ringmain doctor --json | jq .modes
  ringmain doctor --data-dir /var/lib/ringmain";

pub(super) const CREATE_EXAMPLES: &str = "\
Examples:
  ringmain queue create orders
  ringmain queue create ticks --kind spsc --slots 65536 --slot-size 64
  ringmain queue create images --slot-size 4KiB --max-message 1M
  ringmain queue create shared --mode 770 --group staff
  ringmain queue create jobs --durable --max-deliveries 5 --dead-letter jobs-dead --lease 1m
  ringmain queue create tasks --plane brokered
  ringmain queue create inbox --durable --max-messages 100000 --overflow reject
  ringmain queue create events --durable --retention stream --max-bytes 10GiB --max-age 7d
  ringmain queue create prices --plane brokered --max-messages 1000 --overflow drop-oldest
  ringmain queue create gauges --slots 65536 --overflow drop-oldest
  ringmain queue create news --durable --ttl 1h

A brokered queue gives each message to one consumer of each group, waits for its acknowledgement, and gives it to another one if the \
consumer dies or its lease is over. With --durable a confirmed message is on stable storage; without, messages survive \
the broker and end with the daemon's keeper. A dead-letter queue is a brokered queue of the same durability and must \
exist.

A full direct queue lets its producers wait. With --overflow reject it refuses what has no room, with drop-oldest (mpmc) \
its producers discard the oldest messages that nobody holds; 'queue info' counts them and consumers are told.

On a direct mpmc queue a member has one right, 'use', and needs r and w. Separate rights exist on spsc queues.";

pub(super) const PUBLISH_EXAMPLES: &str = "\
Examples:
  ringmain publish orders --file orders.ndjson
  tail -f access.log | ringmain publish access --header host=web1
  seq 1000 | ringmain publish numbers --batch 64 --receipts
  ringmain publish jobs --file jobs.ndjson --confirm durable --receipts --key k1
  ringmain publish orders --file 2024-05.ndjson --producer import-2024-05
  ringmain publish orders --file rest.ndjson --producer import-2024-05 --first-sequence 100001
  echo reminder | ringmain publish jobs --delay 5m --ttl 1h

The line break is no part of the message; an empty line is an empty message. A full queue is waited for, unless it was made with another --overflow.

On a durable queue every message is on stable storage before the command ends with success, unless --confirm received \
is given. A queue with --overflow reject that refuses a message ends the command with 75; on a brokered one every \
confirmation is waited for, because only that tells. A receipt is the sequence of a message that is confirmed, printed as soon as it is known.

With --producer the queue remembers the last line number that it has stored under the name; lines up to that one are \
duplicates, whatever they say, and are counted on stderr. So each input has a name of its own, or goes on with \
--first-sequence. Only one command at a time may use a name: the one that comes later ends the earlier one. A name that \
nobody uses for 7 days is forgotten.

--ttl and --delay count from the publishing of each message, also over restarts. What is not given out in time goes to the \
queue's dead-letter queue, or is discarded and counted as expired.";

pub(super) const CONSUME_EXAMPLES: &str = "\
Examples:
  ringmain consume orders
  ringmain consume orders --drain > orders.ndjson
  ringmain consume orders --count 10 --with-sequence
  ringmain consume orders --group audit --from first

A message is acknowledged after its line was written and flushed. On a brokered queue --drain ends when no message is \
ready or with another consumer; messages whose delay is not over stay. SIGINT and SIGTERM end the command cleanly. A message that an \
earlier consumer held when it died comes again; how many is said on stderr at the end.";

pub(super) const RTT_EXAMPLES: &str = "\
Examples:
  ringmain bench rtt --kind spsc --size 48
  ringmain bench rtt --kind mpmc --size 48 --json
  ringmain bench rtt --wait park --duration 10s

Two processes, pinned to two cores. Windows of the ring alternate with windows of the floor: the round trip of the \
same number of cache lines between the same two processes, without a ring. A message of B bytes takes \
ceil((B + 16) / 64) lines. A pair whose floor probes before and after differ by more than 10 % is dropped and counted. \
ratio_p50 is the median over the kept pairs of the ring's median over the floor's, both interpolated between the ticks \
of the clock, which may be 10 ns apart; rtt_ns and floor_ns are over all windows, as the clock showed them. A round trip is the time \
between two sends of the same process, read from the monotonic clock once, right after each send, in the ring's \
windows and in the floor's; nothing is subtracted. With --wait park a bare futex round trip and the membarrier in front \
of each sleep are measured in the same run.";

pub(super) const THROUGHPUT_EXAMPLES: &str = "\
Examples:
  ringmain bench throughput --kind spsc --size 64 --batch 16
  ringmain bench throughput --kind mpmc --producers 2 --consumers 2 --size 1KiB
  ringmain bench throughput --kind mpmc --producers 8 --consumers 8 --latency

Every word of every payload is derived from its producer and number and is compared on arrival. With one consumer each \
number is checked against the one before; with several, every consumer checks that the numbers of each producer \
grow, and counts and 128-bit sums of what was sent and what arrived must agree. Exits with 65 if they do not.
\"oversubscribed\": more processes than cores; record such figures, do not compare them.

With --latency every message is written in place and carries two times, and the consumer reads the clock when it has \
its copy. latency_us goes from the producer's call to the receipt, so what it waited for room counts; age_us goes from \
the moment that it had its slot. Compare rates without --latency.";

pub(super) const DEATHS_EXAMPLES: &str = "\
Examples:
  ringmain bench deaths
  ringmain bench deaths --kills 1000 --at-once 4 --json
  ringmain bench deaths --with-broker
  ringmain bench deaths --durable

A daemon of its own, a queue of 64 slots, one process that sends and one that receives without a pause. In each round \
other processes attach and hold a slot: in turn consumers that took a message in place, and producers that reserved a \
slot and do not commit it. The two go on until the ring is full up to the held slot and both are stopped, which is \
checked by their counts. Then the holders are killed with SIGKILL, with --with-broker the broker just before them. \
kill_to_success_us is the time from just before the first kill until a send or a receive of the two has succeeded \
again, by the monotonic clock; one figure a round. The two wait as handles do by default (adaptive) and are not pinned.

On a brokered queue (--durable, --plane brokered) consumers die, each with a message that it has not acknowledged, and the \
time ends when another consumer, which was asleep, has the last of their messages.

Exits with 65 if a message that was held does not come again exactly once and marked as redelivered, or if a slot \
that was never committed shows up as a message. An spsc queue has no second member of a role that could go on; it is \
refused.";

pub(super) const EDIT_EXAMPLES: &str = "\
Examples:
  ringmain queue edit jobs --max-deliveries 5 --dead-letter jobs-dead
  ringmain queue edit jobs --lease 10m
  ringmain queue edit jobs --no-dead-letter
  ringmain queue edit events --max-age 30d
  ringmain queue edit inbox --max-messages 0 --overflow block
  ringmain queue edit gauges --overflow drop-oldest

What is not given stays as it is. Of a direct queue only --overflow can be changed: it holds for the next message that finds no \
room, and for those that wait for room already.";

pub(super) const PEEK_EXAMPLES: &str = "\
Examples:
  ringmain peek jobs
  ringmain peek jobs --count 0 --with-sequence
  ringmain peek jobs --from 1000 --count 1 --json

Shows what no group has done with: messages that wait, that are with a consumer, and that are delayed. Takes and \
changes nothing.";

pub(super) const TAIL_EXAMPLES: &str = "\
Examples:
  ringmain tail jobs
  ringmain tail jobs -n 0 --follow
  ringmain tail jobs -n 100 --with-sequence --follow

Takes and changes nothing. With --follow a message is shown as it is stored, also one that is consumed at once; where \
the output is not read fast enough, messages that every group has acknowledged meanwhile are left out.";

pub(super) const GROUP_LIST_EXAMPLES: &str = "\
Examples:
  ringmain group list jobs
  ringmain group list jobs --json | jq '.[] | select(.lag_seconds > 60).group'

The lag is what a group has not acknowledged, and the age of the oldest of it. Lag bytes are an estimate where the \
length of single messages is not known any more.";

pub(super) const GROUP_INFO_EXAMPLES: &str = "\
Examples:
  ringmain group info jobs audit
  ringmain group info jobs default --json | jq .lag_messages";

pub(super) const GROUP_CREATE_EXAMPLES: &str = "\
Examples:
  ringmain group create jobs audit --from first
  ringmain group create jobs audit --from new
  ringmain group create jobs audit --from -10m
  ringmain group create jobs audit --from 2026-01-31T08:00:00+01:00

A group gets what is there: messages that some group has not acknowledged. The answer says where it starts. Consuming \
creates a group as well.";

pub(super) const GROUP_RESET_EXAMPLES: &str = "\
Examples:
  ringmain group reset jobs audit --to first --dry-run
  ringmain group reset jobs audit --to new
  ringmain group reset jobs audit --to 1000 --force

Back it reaches messages that some group has not acknowledged; forward, what lies between is done with for this group. \
The answer says where it really starts. With --force leases of attached consumers are lost: their messages may come \
again.";

pub(super) const GROUP_DELETE_EXAMPLES: &str = "\
Examples:
  ringmain group delete jobs audit
  ringmain group delete jobs audit --force
  ringmain group delete jobs audit --if-exists

What only this group had not acknowledged is gone. The default group cannot be deleted.";

pub(super) const DEAD_LETTER_LIST_EXAMPLES: &str = "\
Examples:
  ringmain dead-letter list jobs-dead
  ringmain dead-letter list jobs --json | jq '.[].reason'

Messages that came there in another way are not shown; see 'ringmain peek'. The payload is cut for people; --json has all of it.";

pub(super) const REDRIVE_EXAMPLES: &str = "\
Examples:
  ringmain dead-letter redrive jobs-dead
  ringmain dead-letter redrive jobs-dead --count 1

A message gets a new sequence in the queue that it came from and counts its deliveries from the start. It stays if that \
queue is gone or has another dead-letter queue by now, or if you may not publish there.";

pub(super) const VERIFY_EXAMPLES: &str = "\
Examples:
  ringmain journal verify /var/lib/ringmain
  ringmain journal verify /var/lib/ringmain/shard-0 --json

The daemon must not run. Nothing is changed. Exits with 65 at damage and names LSN, file and offset of the first one. An \
end that was torn by a crash is no damage: nothing in it was confirmed.";

pub(super) const INSPECT_EXAMPLES: &str = "\
Examples:
  ringmain journal inspect /var/lib/ringmain
  ringmain journal inspect /var/lib/ringmain --json | jq '.[].segments[].file'

The daemon must not run. Nothing is changed.";

pub(super) const REPAIR_EXAMPLES: &str = "\
Examples:
  ringmain journal repair /var/lib/ringmain
  ringmain journal repair /var/lib/ringmain --accept-loss

The daemon must not run. With --accept-loss the damaged files are moved aside, never deleted, and what can be read is \
kept; copy the folder first.";

pub(super) const DURABLE_EXAMPLES: &str = "\
Examples:
  ringmain bench durable --size 256 --window 1 --data-dir /var/tmp
  ringmain bench durable --size 256 --window 4096 --json
  ringmain bench durable --queues 100 --window 1
  ringmain bench durable --window 1 --receive

A daemon of its own with its journal in a temporary folder; this process publishes and waits for every confirmation. \
confirm_us is the time from just before a send to the moment at which its confirmation was seen. Windows of publishing \
alternate with windows of raw durable writes to a file beside the journal, by the same backend and sync mode and with \
as many bytes as the journal wrote per batch; bare futex round trips between two processes are measured in the same run, \
half of one is wake_us. ratio_p50 is the median of confirm over probe, each window over the two probes around it; pairs \
whose probes differ by more than 10 % are dropped and counted. With the socket of a running daemon (--socket) its queues \
are used, and --data-dir must be a folder on the disk of its journal.";

pub(super) const REPLAY_EXAMPLES: &str = "\
Examples:
  ringmain bench replay --data-dir /var/tmp
  ringmain bench replay --backlog 256MiB --beside 64 --json

A daemon of its own with its journal in a temporary folder. The backlog is published, keeper and broker are killed and started \
anew, so that nothing of it is in memory, and another process receives, checks and acknowledges every message. The segment files \
are read raw before and after that. With --beside another queue is published to, for a while without the replay, then \
during it, then without it again.";

pub(super) const FAN_OUT_EXAMPLES: &str = "\
Examples:
  ringmain bench fan-out --data-dir /var/tmp
  ringmain bench fan-out --groups 8 --window 256 --json

A daemon of its own with its journal in a temporary folder, and two durable queues: one with the default group alone, one with \
--groups. Each group has a consumer process of its own that checks and acknowledges every message. Windows of publishing to the one \
and to the other alternate; raw durable writes are measured before and after each pair, and pairs whose probes differ by more than 10 % \
are dropped and counted. The queues hold --backlog messages: the producer waits for a group that is farther behind. The time of a \
window ends when every group has acknowledged everything, so that the rate is one that all of them keep up with. ratio is the median over the pairs of \
the rate with all groups over the rate with one. \"oversubscribed\": more busy processes than processors; record such figures, do not \
compare them.";

pub(super) const TRANSACTION_EXAMPLES: &str = "\
Examples:
  ringmain bench transaction --data-dir /var/tmp
  ringmain bench transaction --size 1KiB --duration 30s --json

A daemon of its own with its journal in a temporary folder. Windows of plain durable publishes, one at a time, alternate with windows of \
transactions, one at a time: each acknowledges a message of an input queue and publishes two, one to an output queue and one back to the \
input queue, so that there is always a next one. A time goes from just before the transaction is put together (or the message sent) to the \
moment at which its confirmation was seen; receiving the input is not part of it. After each window everything that was published is \
received and checked. ratio is the median over the pairs of the transactions' median over the plain publishes'; raw durable writes are \
measured before and after each pair, and pairs whose probes differ by more than 10 % are dropped and counted.";

pub(super) const NAMED_EXAMPLES: &str = "\
Examples:
  ringmain bench named --data-dir /var/tmp
  ringmain bench named --window 1 --json

A daemon of its own with its journal in a temporary folder, and two durable queues: one has a producer without a name, the other a \
producer with one. Windows of publishing to the one and to the other alternate; raw durable writes are measured before and after each pair, \
and pairs whose probes differ by more than 10 % are dropped and counted. ratio is the median over the pairs of the rate with a name over \
the rate without. Nobody consumes meanwhile; that each message was stored once and in its place is checked by its confirmation, and the \
first messages of each window are received and checked after it.";

pub(super) const SOAK_EXAMPLES: &str = "\
Examples:
  ringmain bench soak --data-dir /var/tmp
  ringmain bench soak --duration 2m --rate 20000 --json
  ringmain bench soak --duration 2m --rate 100000 --replay-rate 100000

A daemon of its own with its journal in a temporary folder. First the maximum rate of a durable work queue is measured for some seconds: \
--window messages on the way, --consumers processes that check and acknowledge. Then for --duration half of that rate, or --rate, is \
published, while segments fill, become free and are used again; one more message in a thousand goes to a queue that nobody \
reads, so that the cleaner has work; and another process reads a stream of --stream bytes from its beginning to its end, again and again, as \
fast as it goes or at --replay-rate. Every two seconds \
publishing pauses for 200 ms of raw durable writes to a file beside the journal; the rest goes on. confirm_us is the time from just before \
a send to its confirmation, scheduled_us from the moment at which the message was due. ratio_p999 is the p99.9 of confirm_us over that of \
the raw writes, probe_us, of the same minutes. A line a minute is printed on stderr. What room it needs is checked first. \"oversubscribed\": more busy processes than processors; then \
what is late waits for its turn on a processor, and the figures are to be recorded, not judged.";

pub(super) const REQUEST_EXAMPLES: &str = "\
Examples:
  echo 17 | ringmain request squares
  ringmain request squares --file numbers --timeout 500ms
  seq 3 | ringmain request squares --json | jq .took_ns

One request at a time: the next line is sent when the reply is there. The replies come through a queue that vanishes with the \
command. On a brokered queue a request that no server has taken within --timeout expires; one that was taken may be \
carried out although its reply is not waited for any more.";

pub(super) const REPLY_EXAMPLES: &str = "\
Examples:
  ringmain reply squares --exec 'read n; echo $((n * n))'
  ringmain reply words --exec 'tr a-z A-Z'
  ringmain reply ping --echo --count 10

Any number of servers share the requests of a queue. On a brokered queue a request is acknowledged after its reply was sent, so that one \
whose server dies goes to another; when the command fails there is no reply, and the request goes to the dead-letter queue or is discarded. \
On a direct queue a request is gone when a server has taken it. A requester that is gone is no error. SIGINT and SIGTERM end the \
command cleanly.";
