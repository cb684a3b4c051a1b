package main

import (
	"fmt"
	"strconv"
)

// bits is a flag's value: bits of a mark, which people read and write in hexadecimal.
type bits struct{ to *uint32 }

func newBits(to *uint32, def uint32) bits {
	*to = def
	return bits{to}
}

func (b bits) String() string {
	if b.to == nil {
		return ""
	}
	return fmt.Sprintf("%#x", *b.to)
}

// Type is what the help shows for a value.
func (bits) Type() string { return "bits" }

// Set implements pflag.Value.
func (b bits) Set(text string) error {
	n, err := strconv.ParseUint(text, 0, 32)
	if err != nil {
		return fmt.Errorf("want a number of 32 bits, such as %#x", *b.to)
	}
	*b.to = uint32(n)
	return nil
}
