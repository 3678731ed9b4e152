package statejson

import (
	"math"
	"unicode/utf8"
)

// reader goes through a text.
type reader struct {
	text  []byte
	at    int
	depth int
}

// peek goes to what is next and not white space, and returns its first byte; 0 at the
// end.
func (r *reader) peek() byte {
	for ; r.at < len(r.text); r.at++ {
		switch c := r.text[r.at]; c {
		case ' ', '\t', '\r', '\n':
		default:
			return c
		}
	}
	return 0
}

func (r *reader) atEnd() bool { return r.peek() == 0 && r.at == len(r.text) }

// take takes c if that is next.
func (r *reader) take(c byte) bool {
	if r.peek() != c {
		return false
	}
	r.at++
	return true
}

// word takes a word if that is next.
func (r *reader) word(w string) bool {
	if r.peek() != w[0] || len(r.text)-r.at < len(w) || string(r.text[r.at:r.at+len(w)]) != w {
		return false
	}
	r.at += len(w)
	return true
}

// unsigned takes a whole number. What follows it is for the caller to look at.
func (r *reader) unsigned() (n uint64, ok bool) {
	r.peek()
	begin := r.at
	for ; r.at < len(r.text); r.at++ {
		d := uint64(r.text[r.at] - '0')
		if d > 9 {
			break
		}
		if n > (math.MaxUint64-d)/10 {
			return 0, false
		}
		n = 10*n + d
	}
	digits := r.at - begin
	return n, digits == 1 || digits > 1 && r.text[begin] != '0'
}

// signed takes a whole number that may be negative.
func (r *reader) signed() (int64, bool) {
	negative := r.take('-')
	if negative && r.at < len(r.text) && r.text[r.at]-'0' > 9 {
		return 0, false
	}
	n, ok := r.unsigned()
	switch {
	case !negative:
		return int64(n), ok && n <= math.MaxInt64
	default:
		return -int64(n), ok && n <= 1<<63
	}
}

// string takes a string without escapes. The result is a part of the text.
func (r *reader) string() (s []byte, ok bool) {
	if !r.take('"') {
		return nil, false
	}
	ascii := true
	for begin := r.at; r.at < len(r.text); r.at++ {
		switch c := r.text[r.at]; {
		case c == '"':
			s = r.text[begin:r.at]
			r.at++
			return s, ascii || utf8.Valid(s)
		case c == '\\' || c < ' ':
			return nil, false
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	return nil, false
}

// raw takes any value.
func (r *reader) raw() (text []byte, ok bool) {
	r.peek()
	begin := r.at
	if !r.skip() {
		return nil, false
	}
	return r.text[begin:r.at], true
}

// skip goes over any value.
func (r *reader) skip() bool {
	if r.depth++; r.depth > maxDepth {
		return false
	}
	defer func() { r.depth-- }()
	switch c := r.peek(); c {
	case '"':
		_, ok := r.string()
		return ok
	case 't':
		return r.word("true")
	case 'f':
		return r.word("false")
	case 'n':
		return r.word("null")
	case '{':
		return r.skipAll('{', '}', true)
	case '[':
		return r.skipAll('[', ']', false)
	case '-':
		_, ok := r.signed()
		return ok
	default:
		_, ok := r.unsigned()
		return ok
	}
}

// skipAll goes over an object, whose values have names, or an array.
func (r *reader) skipAll(opening, closing byte, named bool) bool {
	if !r.take(opening) {
		return false
	}
	if r.take(closing) {
		return true
	}
	for {
		if named {
			if _, ok := r.string(); !ok || !r.take(':') {
				return false
			}
		}
		if !r.skip() {
			return false
		}
		if !r.take(',') {
			return r.take(closing)
		}
	}
}
