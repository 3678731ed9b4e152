package stream

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/memory"
)

// TestCorrupt changes each byte of a stream in turn: never is it accepted in silence.
func TestCorrupt(t *testing.T) {
	page := bytes.Repeat([]byte{1}, memory.PageSize)
	good := slices.Concat(
		header{kind: kindPages, offset: 0x1000, length: memory.PageSize, wire: memory.PageSize, sum: checksum(page)}.append(nil),
		page,
		header{kind: kindZero, offset: 0x3000, length: memory.PageSize}.append(nil),
		header{kind: kindFinish, offset: 1}.append(nil),
	)
	dst := newMemory(t, 1<<20)
	for i := -1; i < len(good); i++ {
		stream := slices.Clone(good)
		if i >= 0 {
			stream[i] ^= 1 << (i % 8)
		}
		r, err := NewReceiver(dst, ReceiverOptions{})
		if err != nil {
			t.Fatal(err)
		}
		tape := &tape{in: bytes.NewReader(stream)}
		err = r.Serve(t.Context(), tape)
		if i < 0 && err != nil {
			t.Fatal(err)
		}
		if i >= 0 && (!errors.Is(err, errCorrupt) || !bytes.Contains(tape.out.Bytes(), []byte("changed on the way"))) {
			t.Fatalf("byte %d changed: %v, and the source hears %q", i, err, tape.out.Bytes())
		}
	}
}

// TestHostile sends frames that no sender makes.
func TestHostile(t *testing.T) {
	const page = memory.PageSize
	pages := func(h header, payload int) []byte {
		p := make([]byte, payload)
		h.wire, h.sum = uint32(payload), checksum(p)
		return append(h.append(nil), p...)
	}
	for _, test := range []struct {
		name   string
		stream []byte
		want   string
	}{
		{"nothing", nil, "closed the connection before"},
		{"half a header", header{kind: kindFinish}.append(nil)[:31], "unexpected EOF"},
		{"half a page", pages(header{kind: kindPages, length: page}, page)[:100], "unexpected EOF"},
		{"unknown", header{kind: 1}.append(nil), "does not have"},
		{"an answer", header{kind: kindAck}.append(nil), "does not have"},
		{"payload too long", header{kind: kindPages, length: 2 << 20, wire: 2 << 20}.append(nil), "want at most 1048576"},
		{"odd offset", pages(header{kind: kindPages, offset: 1, length: page}, page), "not whole pages"},
		{"odd length", pages(header{kind: kindPages, length: 1}, 1), "not whole pages"},
		{"no length", pages(header{kind: kindPages}, 0), "not whole pages"},
		{"behind the end", pages(header{kind: kindPages, offset: testSize, length: page}, page), "not whole pages"},
		{"over the end", pages(header{kind: kindPages, offset: testSize - page, length: 2 * page}, 2*page), "not whole pages"},
		{"far away", pages(header{kind: kindPages, offset: ^uint64(0) &^ (page - 1), length: page}, page), "not whole pages"},
		{"around", pages(header{kind: kindPages, offset: page, length: ^uint64(0) &^ (page - 1)}, page), "not whole pages"},
		{"too little", pages(header{kind: kindPages, length: 2 * page}, page), "for 8192 bytes of memory"},
		{"compressed, too long", pages(header{kind: kindZstd, length: page}, page+1), "compressed"},
		{"compressed, empty", pages(header{kind: kindZstd, length: page}, 0), "compressed"},
		{"compressed, rubbish", pages(header{kind: kindZstd, length: page}, 100), "compressed"},
		{"compressed, outside", pages(header{kind: kindZstd, offset: testSize, length: page}, 100), "not whole pages"},
		{"zeros over the end", header{kind: kindZero, offset: page, length: testSize}.append(nil), "not whole pages"},
		{"zeros around", header{kind: kindZero, offset: page, length: ^uint64(0) &^ (page - 1)}.append(nil), "not whole pages"},
		{"half a page of zeros", header{kind: kindZero, length: 1}.append(nil), "not whole pages"},
		{"zeros with payload", pages(header{kind: kindZero, length: page}, 1), "want none"},
		{"barrier with payload", pages(header{kind: kindBarrier}, 1), "want none"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dst := newMemory(t, testSize)
			r, err := NewReceiver(dst, ReceiverOptions{})
			if err != nil {
				t.Fatal(err)
			}
			err = r.Serve(t.Context(), &tape{in: bytes.NewReader(test.stream)})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// TestConfirmations has a receiver that does not keep to the protocol.
func TestConfirmations(t *testing.T) {
	ack := func(n uint64) []byte { return header{kind: kindAck, offset: n}.append(nil) }
	for _, test := range []struct {
		name   string
		stream []byte
		want   string
	}{
		{"nothing", nil, "closed the connection"},
		{"half a header", ack(1)[:10], "unexpected EOF"},
		{"in order", slices.Concat(ack(1), ack(2)), "closed the connection"},
		{"finished", header{kind: kindAck, offset: 1, length: finished}.append(nil), ""},
		{"repeated", slices.Concat(ack(1), ack(1)), "confirmed barrier 1 after 1"},
		{"too early", slices.Concat(ack(1), ack(2), ack(3)), "confirmed barrier 3 after 2, of 2"},
		{"left out", ack(2), "confirmed barrier 2 after 0"},
		{"not an answer", header{kind: kindPages}.append(nil), `sent a frame "PAGE"`},
		{"answer with payload", header{kind: kindAck, offset: 1, wire: 1}.append(nil), `sent a frame "ACKN" of 1 bytes`},
		{"reason", appendFail(nil, "no\x1b[2Jmemory"), `the receiver says: no\x1b[2Jmemory`},
		{"reason cut off", appendFail(nil, "no memory")[:35], "cut off"},
		{"reason too long", header{kind: kindFail, wire: maxText + 1}.append(nil), "want at most 512"},
		{"reason corrupt", append(appendFail(nil, "no memory")[:40], 'x'), "cannot be read"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := &lane{sender: &Sender{confirmed: make(chan uint64, 2)}}
			l.asked.Store(2)
			err := l.confirmations(bytes.NewReader(test.stream))
			if test.want == "" && err == nil {
				return
			}
			if err == nil || test.want == "" || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// tape is a connection that plays what is in and keeps what is written.
type tape struct {
	net.Conn // no address
	in       io.Reader
	out      bytes.Buffer
}

func (c *tape) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *tape) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }
