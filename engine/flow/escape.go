package flow

import (
	"strconv"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string (RFC 8259 section 7) that is safe on
// a terminal: everything that is not printable is escaped, which encoding/json
// does not do for DEL, the C1 controls and the bidirectional overrides. Bytes
// that are not UTF-8 become U+FFFD.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s { // yields U+FFFD for invalid bytes
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case unicode.IsPrint(r):
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			b = appendEscape(appendEscape(b, high), low)
		default:
			b = appendEscape(b, r)
		}
	}
	return append(b, '"')
}

// appendEscape appends the \u form of one UTF-16 code unit.
func appendEscape(b []byte, unit rune) []byte {
	return append(b, '\\', 'u', hexDigits[unit>>12&0xf], hexDigits[unit>>8&0xf],
		hexDigits[unit>>4&0xf], hexDigits[unit&0xf])
}

// appendKey appends a key, which needs no escaping, and the comma before it
// unless it is the first of its object.
func appendKey(b []byte, key string) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = append(b, '"')
	b = append(b, key...)
	return append(b, '"', ':')
}

func appendStringField(b []byte, key, value string) []byte {
	return appendString(appendKey(b, key), value)
}

func appendIntField(b []byte, key string, value int64) []byte {
	return strconv.AppendInt(appendKey(b, key), value, 10)
}

func appendUintField(b []byte, key string, value uint64) []byte {
	return strconv.AppendUint(appendKey(b, key), value, 10)
}
