/*
 * Accepts every packet of a queue as fast as a program in C can: what remains
 * when a user-space firewall decides nothing. The practical ceiling.
 *
 * recvmmsg reads many messages at once; one NFQNL_MSG_VERDICT_BATCH answers all
 * up to the last id (linux/netfilter/nfnetlink_queue.h).
 *
 *	acceptall QUEUE
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { BATCH = 64, SIZE = 4096, COPY = 128, QUEUE_LENGTH = 8192, RECEIVE_BUFFER = 16 << 20 };

static char buffers[BATCH][SIZE];
static struct iovec iovecs[BATCH];
static struct mmsghdr headers[BATCH];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static struct nlmsghdr *message(char *buf, int type, int queue)
{
	struct nlmsghdr *nlh = mnl_nlmsg_put_header(buf);
	struct nfgenmsg *nfg;

	nlh->nlmsg_type = (NFNL_SUBSYS_QUEUE << 8) | type;
	nlh->nlmsg_flags = NLM_F_REQUEST;
	nfg = mnl_nlmsg_put_extra_header(nlh, sizeof(*nfg));
	nfg->nfgen_family = AF_UNSPEC;
	nfg->version = NFNETLINK_V0;
	nfg->res_id = htons(queue);
	return nlh;
}

static void configure(struct mnl_socket *nl, int queue)
{
	struct nfqnl_msg_config_cmd bind = { .command = NFQNL_CFG_CMD_BIND };
	struct nfqnl_msg_config_params params = { .copy_range = htonl(COPY), .copy_mode = NFQNL_COPY_PACKET };
	char buf[SIZE];
	struct nlmsghdr *nlh;
	int ret;

	memset(buf, 0, sizeof(buf));
	nlh = message(buf, NFQNL_MSG_CONFIG, queue);
	nlh->nlmsg_flags |= NLM_F_ACK;
	mnl_attr_put(nlh, NFQA_CFG_CMD, sizeof(bind), &bind);
	mnl_attr_put(nlh, NFQA_CFG_PARAMS, sizeof(params), &params);
	mnl_attr_put_u32(nlh, NFQA_CFG_QUEUE_MAXLEN, htonl(QUEUE_LENGTH));
	mnl_attr_put_u32(nlh, NFQA_CFG_FLAGS, htonl(NFQA_CFG_F_GSO));
	mnl_attr_put_u32(nlh, NFQA_CFG_MASK, htonl(NFQA_CFG_F_GSO));
	if (mnl_socket_sendto(nl, nlh, nlh->nlmsg_len) < 0)
		die("send configuration");
	ret = mnl_socket_recvfrom(nl, buf, sizeof(buf));
	if (ret < 0 || mnl_cb_run(buf, ret, 0, mnl_socket_get_portid(nl), NULL, NULL) < 0)
		die("bind queue");
}

/* packet_id returns the id in a queue message, or 0, which none has. */
static uint32_t packet_id(const struct nlmsghdr *nlh)
{
	const struct nlattr *attr;

	if ((nlh->nlmsg_type & 0xff) != NFQNL_MSG_PACKET)
		return 0;
	mnl_attr_for_each(attr, nlh, sizeof(struct nfgenmsg))
		if (mnl_attr_get_type(attr) == NFQA_PACKET_HDR)
			return ntohl(((struct nfqnl_msg_packet_hdr *)mnl_attr_get_payload(attr))->packet_id);
	return 0;
}

static void accept_up_to(struct mnl_socket *nl, int queue, uint32_t id)
{
	struct nfqnl_msg_verdict_hdr verdict = { .verdict = htonl(NF_ACCEPT), .id = htonl(id) };
	char buf[128];
	struct nlmsghdr *nlh;

	memset(buf, 0, sizeof(buf));
	nlh = message(buf, NFQNL_MSG_VERDICT_BATCH, queue);
	mnl_attr_put(nlh, NFQA_VERDICT_HDR, sizeof(verdict), &verdict);
	if (mnl_socket_sendto(nl, nlh, nlh->nlmsg_len) < 0)
		die("send verdict");
}

int main(int argc, char **argv)
{
	int queue = argc == 2 ? atoi(argv[1]) : -1, size = RECEIVE_BUFFER, one = 1, i, n;
	struct mnl_socket *nl;

	if (queue < 0 || queue > 65535) {
		fprintf(stderr, "usage: acceptall QUEUE\n");
		return 1;
	}
	nl = mnl_socket_open(NETLINK_NETFILTER);
	if (!nl || mnl_socket_bind(nl, 0, MNL_SOCKET_AUTOPID) < 0)
		die("open netlink socket");
	if (setsockopt(mnl_socket_get_fd(nl), SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0)
		die("SO_RCVBUFFORCE");
	mnl_socket_setsockopt(nl, NETLINK_NO_ENOBUFS, &one, sizeof(one));
	configure(nl, queue);
	for (i = 0; i < BATCH; i++) {
		iovecs[i] = (struct iovec){ buffers[i], SIZE };
		headers[i].msg_hdr.msg_iov = &iovecs[i];
		headers[i].msg_hdr.msg_iovlen = 1;
	}
	puts("listening");
	fflush(stdout);
	for (;;) {
		uint32_t last = 0, id;

		n = recvmmsg(mnl_socket_get_fd(nl), headers, BATCH, MSG_WAITFORONE, NULL);
		if (n < 0 && errno != EINTR && errno != ENOBUFS)
			die("receive");
		for (i = 0; i < n; i++)
			if ((id = packet_id((struct nlmsghdr *)buffers[i])))
				last = id;
		if (last)
			accept_up_to(nl, queue, last);
	}
}
