package snapshot

import (
	"bytes"
	"testing"
)

// TestChecksums has both ways to the same checksum, that of RFC 3720 §B.4 among others.
func TestChecksums(t *testing.T) {
	zeros := make([]byte, 32)
	if got := checksumOnce(zeros); got != 0x8a9136aa {
		t.Errorf("32 zeros: %#x", got)
	}
	for _, parts := range [][][]byte{
		nil, {{}}, {zeros}, {[]byte("a"), nil, []byte("bc")},
		{bytes.Repeat([]byte("state"), 20_000), []byte("small"), bytes.Repeat([]byte{0xff}, 64<<10)},
	} {
		if got, want := checksumOnce(parts...), checksum(parts...); got != want || got != checksumOnce(bytes.Join(parts, nil)) {
			t.Errorf("%d parts: %#x, want %#x", len(parts), got, want)
		}
	}
}
