package flow

import (
	"fmt"
	"strings"
)

// TCPFlags is byte 13 of the TCP header (RFC 9293 section 3.1). Its text is the
// names of the flags that are set, lowest bit first, with commas: "SYN,ACK".
type TCPFlags uint8

// tcpFlagNames are in bit order, lowest first.
var tcpFlagNames = [8]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"}

func (f TCPFlags) String() string {
	if f == 1<<1 {
		return "SYN" // nearly all of them: a record is made from a first packet
	}
	var set []string
	for i, name := range tcpFlagNames {
		if f&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	return strings.Join(set, ",")
}

// MarshalText renders the flags as String does.
func (f TCPFlags) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads names as String prints them, in any order.
func (f *TCPFlags) UnmarshalText(b []byte) error {
	*f = 0
	if len(b) == 0 {
		return nil
	}
	for name := range strings.SplitSeq(string(b), ",") {
		bit := flagBit(name)
		if bit == 0 {
			return fmt.Errorf("TCP flag %q is not one of %s", name, strings.Join(tcpFlagNames[:], ", "))
		}
		*f |= bit
	}
	return nil
}

func flagBit(name string) TCPFlags {
	for i, n := range tcpFlagNames {
		if n == name {
			return 1 << i
		}
	}
	return 0
}
