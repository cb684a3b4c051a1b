package packet

import "fmt"

// State says whether a packet could be decoded, and if not, why not. Every
// state but OK is malformed to the policy and denied; the zero State is one of
// those, so a Packet nobody decoded opens nothing.
type State uint8

const (
	// Undecoded is the state of a Packet that never went through Decode.
	Undecoded State = iota
	// OK: addresses, protocol and, where the protocol has them, ports are valid.
	OK
	// TruncatedHeader: the packet ends, by its own account, inside a header it
	// needs; also any capture that ends inside the fixed IP header.
	TruncatedHeader
	// ShortCapture: the packet is long enough but the copied bytes end inside a
	// header that is needed. A larger copy range cures it.
	ShortCapture
	// BadVersion: the IP version is neither 4 nor 6.
	BadVersion
	// BadHeaderLength: the IPv4 header length (IHL) is below 5 words (RFC 791).
	BadHeaderLength
	// BadTotalLength: the IPv4 total length is below the header length.
	BadTotalLength
	// BadJumboLength: an IPv6 payload length of 0 is followed by a hop-by-hop
	// header without a valid jumbo payload option (RFC 2675).
	BadJumboLength
	// BadDataOffset: the TCP data offset is below 5 words or points past the
	// end of the packet (RFC 9293).
	BadDataOffset
	// BadUDPLength: the UDP length is below 8 or exceeds the packet (RFC 768).
	BadUDPLength
	// Fragment: a fragment that is not the first has no transport header.
	// Conntrack reassembles before the queue, so none should ever get here.
	Fragment
	// ExtensionChainTooLong: more than maxExtensions IPv6 extension headers.
	ExtensionChainTooLong

	numStates
)

var stateNames = [numStates]string{
	Undecoded:             "undecoded",
	OK:                    "ok",
	TruncatedHeader:       "truncated-header",
	ShortCapture:          "short-capture",
	BadVersion:            "bad-version",
	BadHeaderLength:       "bad-header-length",
	BadTotalLength:        "bad-total-length",
	BadJumboLength:        "bad-jumbo-length",
	BadDataOffset:         "bad-data-offset",
	BadUDPLength:          "bad-udp-length",
	Fragment:              "fragment",
	ExtensionChainTooLong: "extension-chain-too-long",
}

// Malformed reports whether the packet must not be judged by its fields.
func (s State) Malformed() bool { return s != OK }

func (s State) String() string {
	if s < numStates {
		return stateNames[s]
	}
	return stateNames[Undecoded]
}

// MarshalText renders the state as String does.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText accepts exactly what MarshalText renders.
func (s *State) UnmarshalText(b []byte) error {
	for i, name := range stateNames {
		if name == string(b) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("packet state %q is not known", b)
}
