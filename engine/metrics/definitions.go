package metrics

// What the node does.
var (
	buildInfo = gauge("build_info", "1; the labels say which program this is.", "version", "goversion")
	enforcing = gauge("enforcing", "1 while rules and a tree are in force on this node, else 0.")

	decisions = counter("decisions_total", "Decisions about packets that user space was asked about, by what they say. Packets that the kernel decides from memory are not among them: see rule_packets_total.",
		"verdict", "reason", "direction")
	policyHits = counter("policy_hits_total", "Decisions that a policy made: a rule of it allowed, or it isolates the pod and no rule allowed. A denial counts for each policy that isolates the pod. "+
		"Policies beyond --metrics-policies are counted together, with the name other and no namespace. The series of a policy ends with the policy. Exact: not taken from flow records.",
		"kind", "namespace", "policy", "direction", "verdict")
	rulePackets = counter("rule_packets_total", "Packets that the kernel's rules matched, by the purpose of the rule. deny-set: dropped because the same was denied before. allow-set: connections allowed because the same was allowed before. "+
		"queue: asked. established, reply: passed without a question. flood: dropped, of sources beyond --ask-limit. spoofed: dropped by --anti-spoof, or sent on in the name of this node. on-link: between pods of one bridge, and to nobody's own address. Read at most every 5 s; the milliseconds of a switch of rules are missing.",
		"purpose")
	ruleBytes        = counter("rule_bytes_total", "Bytes of the packets in rule_packets_total.", "purpose")
	ruleReadFailures = counter("rule_read_failures_total", "Times that the counters of the rules could not be read; they are missing from that scrape then.")
	ruleRepairs      = counter("rule_repairs_total", "Times that somebody else had changed or removed the rules and they were put back; for up to 15 s before, packets may have passed unjudged.")
)

// The packet path.
var (
	queuePackets     = counter("queue_packets_total", "Packets read from a queue.", "queue")
	queueBatches     = counter("queue_batches_total", "Receive calls that brought packets; packets divided by it is the mean batch.", "queue")
	queueAnswers     = counter("queue_answers_total", "Answers written: accept, drop, or repeat (back through the rules with a verdict in the mark).", "queue", "answer")
	queueWaiting     = gauge("queue_waiting_packets", "Packets in the kernel's queue: unread, being judged, or on hold.", "queue")
	queueDrops       = counter("queue_kernel_drops_total", "Packets that the kernel dropped because the queue was full (--queue-length), or let pass unjudged with --queue-bypass.", "queue")
	queueBufferDrops = counter("queue_user_drops_total", "Packets that the kernel dropped because the socket's receive buffer was full, or let pass unjudged with --queue-bypass.", "queue")
	queueOverruns    = counter("queue_overruns_total", "Times that the kernel reported a full receive buffer (ENOBUFS).", "queue")
	queueMalformed   = counter("queue_malformed_total", "Queue messages that could not be parsed; their packets are dropped.", "queue")
	queueErrors      = counter("queue_answer_errors_total", "Answers that the kernel refused, by errno. ENOENT: the packet was gone, for instance with its interface.", "queue", "errno")
	sendRetries      = counter("queue_send_retries_total", "Writes of answers that had to be repeated.", "queue")
	verdictLatency   = histogram("verdict_latency_seconds", "Time from reading a packet to having written its answer, for one batch in eight. The wait in the kernel's queue before is not in it. Also a native histogram.", "queue")

	answers    = counter("answers_total", "Answers to denied packets (--deny=reject, netverdict.io/deny), by kind: reset (TCP; both ends of a live connection count) or icmp.", "kind")
	unanswered = counter("unanswered_total", "Denied packets that were to be answered and were not: limited (--reject-rate), lost (too many at once) or failed (could not be sent).", "reason")

	cacheHits   = counter("flow_cache_hits_total", "Decisions found in the flow cache.")
	cacheMisses = counter("flow_cache_misses_total", "Decisions made by the tree because the flow cache did not have them.")
	held        = gauge("held_packets", "Packets that wait for their pod to become known.")
	holds       = counter("holds_total", "Packets that ever waited for their pod to become known.")
	holdExpired = counter("holds_expired_total", "Packets whose pod did not become known in time (--hold-time): --unknown-pod decided them.")
)

// What an agent with --mode=audit sees.
var auditPackets = counter("audit_packets_total", "Packets that may begin a flow, only with --mode=audit. copied: seen, the others included. dropped: lost, because the socket's buffer was full. malformed, not-ip: not judged.", "fate")

// Policies and how soon they are enforced.
var (
	policies  = gauge("policies", "Policies that select a pod of this node.")
	addresses = gauge("addresses", "Addresses of pods and nodes in the tree.")
	policed   = gauge("policed_addresses", "Addresses of this node's pods that a policy isolates.", "direction")
	treeParts = gauge("tree_parts", "Size of the tree: classes of peers, programs (sets of rules), cells (answers by program and class), spans (runs of ports), outcomes.", "part")

	revision   = gauge("revision", "Trees enforced since the agent started.")
	epoch      = gauge("epoch", "Number in the marks of today's verdicts; changes with every switch of the rules and comes round.")
	generation = gauge("generation", "Number in the connection marks that are believed, by family; changes whenever something is revoked and comes round.", "family")

	listenersWaiting = gauge("listeners_waiting", "Addresses and sockets of flags that another process still has, as the agent that this one replaces does; they are tried until they are free.")

	compileTime    = histogram("compile_seconds", "Time to make a tree of a snapshot. Also a native histogram.")
	applyTime      = histogram("apply_seconds", "Time to put a tree in force: sets, rules, swap. Also a native histogram.")
	enforcementLag = histogram("enforcement_lag_seconds", "Time from learning of a change to enforcing it; changes that come together count once, as the oldest. The first state of an agent is not in it. Also a native histogram.")
	changes        = counter("changes_total", "Trees put in force after the first: revokes (something allowed is now denied), adds (something denied is now allowed), both, or none.", "effect")
	changeFailures = counter("change_failures_total", "Snapshots that could not be compiled or applied; the last good one stays in force, and applying is tried again every second.")
	changeAge      = gauge("unenforced_change_age_seconds", "Age of the oldest change that is known but not in force; 0 if there is none.")
	overLimit      = gauge("policies_over_limit", "Policies that expand too much to be compiled (--policy-limits): they isolate the pods that they select, and allow nothing. netverdict status names them.")
	sourceFailing  = gauge("source_failing", "1 while the newest state of the source (API server or manifests) cannot be read or enforced.")

	sourceConnected = gauge("source_connected", "1 while the API server's objects of a kind are being watched. Only with an API server.", "kind")
	sourceSynced    = gauge("source_synced", "1 once all objects of a kind were read; stays so. Only with an API server.", "kind")
	sourceObjects   = gauge("source_objects", "Objects of a kind that are known. Only with an API server.", "kind")
	sourcePending   = gauge("source_pending_seconds", "Age of the oldest change of a kind that no snapshot shows yet; 0 if there is none. Only with an API server.", "kind")
)

// The flow log.
var (
	flowRecords = counter("flow_records_total", "Flow records handed on to the flow log and other readers.")
	flowLost    = counter("flow_records_lost_total", "Flow records lost because readers were slower than packets. Decisions are counted all the same.")
	logLines    = counter("flow_log_lines_total", "Lines written to the flow log.")
	logFolded   = counter("flow_log_folded_total", "Flows that have no line of their own because they repeat one (--flow-log-fold).")
	logWithheld = counter("flow_log_withheld_total", "Flows left out of the flow log because there were too many lines (--flow-log-rate).")
	logFailures = counter("flow_log_write_failures_total", "Writes to the flow log that failed.")
)
