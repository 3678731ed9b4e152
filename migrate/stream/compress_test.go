package stream

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"
)

// TestGain decides for links and compressors of several speeds, in bytes a second.
func TestGain(t *testing.T) {
	for _, test := range []struct {
		name       string
		link, pack float64
		ratio      float64
		want       bool
	}{
		{"slow link", 100e6, 500e6, 0.5, true},
		{"fast link", 5e9, 500e6, 0.5, false},
		{"link a little slower", 490e6, 500e6, 0.5, true},
		{"link a little faster", 510e6, 500e6, 0.5, false},
		{"nothing gets smaller", 100e6, 500e6, 1.001, false},
		{"hardly smaller", 100e6, 500e6, 0.99, true},
	} {
		const n = 1 << 20
		var g gain
		if !g.worthwhile() {
			t.Errorf("%s: is not tried", test.name)
		}
		after := int(n * test.ratio)
		for range 50 {
			g.packed(n, after, time.Duration(n/test.pack*1e9))
			g.wrote(n, time.Duration(n/test.link*1e9))
		}
		yes := 0
		for range 10 * (retry + 1) {
			if g.worthwhile() {
				yes++
			}
		}
		if want := map[bool]int{true: 10 * (retry + 1), false: 10}[test.want]; yes != want {
			t.Errorf("%s: %d times of %d, want %d", test.name, yes, 10*(retry+1), want)
		}
	}
}

// TestGainFollows has the link become slow, and fast again.
func TestGainFollows(t *testing.T) {
	const n = 1 << 20
	var g gain
	g.packed(n, n/4, 2*time.Millisecond)
	for _, test := range []struct {
		took time.Duration
		want bool
	}{{time.Millisecond, false}, {20 * time.Millisecond, true}, {time.Millisecond, false}} {
		for range 100 {
			g.wrote(n, test.took)
		}
		g.asked = 0
		if got := g.worthwhile(); got != test.want {
			t.Errorf("a link that takes %v: %v, want %v", test.took, got, test.want)
		}
	}
}

func TestPack(t *testing.T) {
	random := make([]byte, chunkSize)
	rand.NewChaCha8([32]byte{1}).Read(random)
	text := bytes.Repeat([]byte("godwit "), chunkSize/7)
	for _, test := range []struct {
		name  string
		pages []byte
		want  bool
	}{{"text", text, true}, {"a page", text[:4096], true}, {"random", random, false}} {
		packed, err := newCompressor(Zstd).pack(test.pages)
		if err != nil || (packed != nil) != test.want || len(packed) >= len(test.pages) {
			t.Errorf("%s: %d bytes became %d, %v", test.name, len(test.pages), len(packed), err)
		}
	}
}
