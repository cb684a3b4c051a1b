package packet

// span is the rest of a packet from some header on: what was captured of it,
// and how long it is by the lengths that enclose it. len(b) <= length.
type span struct {
	b      []byte
	length int
}

// newSpan bounds the captured bytes by the claimed length: bytes after it are
// link-layer padding, which must not be read as headers.
func newSpan(b []byte, length int) span {
	return span{b: b[:min(len(b), length)], length: length}
}

// need tells whether a header of n bytes is there to be read: OK,
// TruncatedHeader or ShortCapture.
func (s span) need(n int) State { return s.needPrefix(n, n) }

// needPrefix is need for a header of n bytes of which only the first read
// matter: the packet must have room for all of it, the capture only for those.
func (s span) needPrefix(read, n int) State {
	switch {
	case s.length < n:
		return TruncatedHeader
	case len(s.b) < read:
		return ShortCapture
	}
	return OK
}

// skip returns the span after the first n bytes, which need has found present.
func (s span) skip(n int) span {
	return span{b: s.b[n:], length: s.length - n}
}
