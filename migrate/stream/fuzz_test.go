package stream

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/memory"
	"github.com/klauspost/compress/zstd"
)

// sealed makes the checksums of a stream of frames right, so that a fuzzer that changes
// something else gets behind them. What does not look like a frame stays.
func sealed(stream []byte) []byte {
	stream = slices.Clone(stream)
	for p := stream; len(p) >= headerSize; {
		payload := p[headerSize:]
		payload = payload[:min(uint64(len(payload)), uint64(binary.LittleEndian.Uint32(p[4:])))]
		binary.LittleEndian.PutUint32(p[24:], checksum(payload))
		binary.LittleEndian.PutUint32(p[28:], checksum(p[:28]))
		p = p[headerSize+len(payload):]
	}
	return stream
}

// FuzzReceiver plays a hostile source to a guest of 4 MiB. Memory outside of the frames
// that came must stay as it was.
func FuzzReceiver(f *testing.F) {
	const size, page = 4 << 20, memory.PageSize
	zip, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		f.Fatal(err)
	}
	packed := zip.EncodeAll(bytes.Repeat([]byte("godwit"), 2*page/6+1)[:2*page], nil)
	one := bytes.Repeat([]byte{1}, page)
	finish := header{kind: kindFinish, offset: 2}.append(nil)
	for _, frames := range [][][]byte{
		{finish},
		{header{kind: kindPages, offset: page, length: page, wire: page}.append(nil), one, finish},
		{header{kind: kindZstd, offset: 8 * page, length: 2 * page, wire: uint32(len(packed))}.append(nil), packed, finish},
		{header{kind: kindZero, length: size}.append(nil), header{kind: kindBarrier, offset: 1}.append(nil), finish},
		{header{kind: kindZero, offset: ^uint64(0) &^ (page - 1), length: page}.append(nil)},
		{header{kind: kindPages, offset: size - page, length: page, wire: page}.append(nil), one[1:]},
		{header{kind: kindFail, wire: 3}.append(nil), []byte("why")},
	} {
		f.Add(true, slices.Concat(frames...))
		f.Add(false, sealed(slices.Concat(frames...)))
	}
	f.Fuzz(func(t *testing.T, seal bool, stream []byte) {
		if seal {
			stream = sealed(stream)
		}
		dst := newMemory(t, size)
		r, err := NewReceiver(dst, ReceiverOptions{})
		if err != nil {
			t.Fatal(err)
		}
		conn := &tape{in: bytes.NewReader(stream)}
		err = r.Serve(t.Context(), conn)
		if err == nil && !bytes.Contains(stream, finish[:4]) {
			t.Error("finished without an end")
		}
		if err != nil && conn.out.Len() == 0 {
			t.Error("the source does not hear of", err)
		}
		if most := len(stream)/headerSize*headerSize + 2*(headerSize+maxText); conn.out.Len() > most {
			t.Errorf("%d bytes were answered to %d", conn.out.Len(), len(stream))
		}
		// A frame of pages takes space in the stream, unless it is compressed.
		received, content := pageSet(r.Received()), r.content
		for at, end := uint64(0), uint64(size/page); ; {
			first, n := content.next(at, end)
			if n == 0 {
				break
			}
			if err == nil && !received.has(first, n) {
				t.Errorf("%d pages from %d have content that did not come", n, first)
			}
			at = first + n
		}
		if used := used(t, dst); used > count(content) {
			t.Errorf("%d pages are in use, %d have content", used, count(content))
		}
	})
}

// FuzzConfirmations plays a hostile destination to a sender.
func FuzzConfirmations(f *testing.F) {
	ack := header{kind: kindAck, offset: 1}.append(nil)
	f.Add(false, ack)
	f.Add(true, slices.Concat(ack, header{kind: kindAck, offset: 2, length: finished}.append(nil)))
	f.Add(true, appendFail(ack, "no memory"))
	f.Add(true, header{kind: kindFail, wire: maxPayload}.append(nil))
	f.Fuzz(func(t *testing.T, seal bool, stream []byte) {
		if seal {
			stream = sealed(stream)
		}
		l := &lane{sender: &Sender{confirmed: make(chan uint64, 3)}}
		l.asked.Store(3)
		err := l.confirmations(bytes.NewReader(stream))
		if err == nil && len(l.sender.confirmed) == 0 {
			t.Error("the end without a confirmation")
		}
		for want := uint64(1); len(l.sender.confirmed) > 0; want++ {
			if got := <-l.sender.confirmed; got != want {
				t.Errorf("barrier %d is confirmed, want %d", got, want)
			}
		}
	})
}

// FuzzPreamble plays a stranger to both ends of a set-up.
func FuzzPreamble(f *testing.F) {
	f.Add(Preamble{ID: ID{1, 2, 3}, Channel: Data, Index: 7, TLS: true, Again: true}.append(nil))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	var answer bytes.Buffer
	if err := writeAnswer(&answer, "there is no memory"); err != nil {
		f.Fatal(err)
	}
	f.Add(answer.Bytes())
	f.Fuzz(func(t *testing.T, stream []byte) {
		conn := &anonymous{tape{in: bytes.NewReader(stream)}}
		p, err := ReadPreamble(conn, time.Time{})
		if err == nil {
			if again := p.append(nil); !bytes.Equal(again, stream[:preambleSize]) {
				t.Errorf("%+v is written as %x, read from %x", p, again, stream[:preambleSize])
			}
		} else if !bytes.HasPrefix(stream, []byte(magic)) && conn.out.Len() > 0 {
			t.Error("a stranger gets an answer")
		}
		_ = readAnswer(bytes.NewReader(stream))
	})
}

// anonymous is a tape with an address.
type anonymous struct{ tape }

func (*anonymous) RemoteAddr() net.Addr { return &net.UnixAddr{} }
