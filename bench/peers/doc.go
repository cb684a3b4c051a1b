// The program peers measures what a user-space firewall costs on the wire,
// beside what a user would pick instead, in one interleaved run:
//
//	             host "client"      node "bench"        host "server"
//	load ──────▶ 10.250.0.1 ──veth──▶ forwards ──veth──▶ 10.250.0.2 ──▶ load
//	(a process)                     the variant          (a process)
//
// Every round runs every scenario under every variant once, so that whatever
// else the machine does meets all of them alike. Output is in Go's benchmark
// format, for benchstat and for the program report, which makes the table and
// the plots of bench/README.md.
//
//	peers -rounds 5 >results.txt
//	peers -variants conntrack,netverdict -scenarios connects -rounds 1
//	report -readme ../README.md -plots .. results.txt
//
// Needs root, iptables, ipset, nft, a C compiler and libmnl.
package main
