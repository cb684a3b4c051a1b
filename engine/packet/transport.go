package packet

// TransportAt finds the transport header of a packet that Decode has found no fault
// with, in the bytes that Decode was given: Decode keeps what it says, not where it
// is. ok is false if it is not among the bytes.
func TransportAt(b []byte) (at int, ok bool) {
	if len(b) < ipv4HeaderLen {
		return 0, false
	}
	if b[0]>>4 == 4 {
		at = int(b[0]&0x0f) * 4
		return at, at <= len(b)
	}
	if len(b) < ipv6HeaderLen {
		return 0, false
	}
	next, at := b[6], ipv6HeaderLen
	for isExtension(next) && at+minExtensionLen <= len(b) {
		next, at = b[at], at+extensionLen(next, b[at+1])
	}
	return at, at <= len(b)
}
