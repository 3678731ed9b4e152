package agent

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
)

func TestFrameRoundTrip(t *testing.T) {
	frames := []frame{
		{kind: kindHello, payload: []byte("{}")},
		{kind: kindData, stream: stderr, session: 0xfffe, payload: bytes.Repeat([]byte{0xf5}, maxPayload)},
		{kind: kindEOF, stream: stdin, session: 1},
	}
	var line []byte
	for _, f := range frames {
		line = appendFrame(line, f)
	}
	r, buf := bytes.NewReader(line), make([]byte, headerSize+maxPayload)
	for _, want := range frames {
		got, err := readFrame(r, buf)
		if err != nil {
			t.Fatal(err)
		}
		if got.kind != want.kind || got.stream != want.stream || got.session != want.session || !bytes.Equal(got.payload, want.payload) {
			t.Errorf("read %v, want %v", got, want)
		}
	}
	if _, err := readFrame(r, buf); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want EOF", err)
	}
}

func TestReadFrameRejects(t *testing.T) {
	good := appendFrame(nil, frame{kind: kindData, session: 7, payload: []byte("x")})
	flip := func(i int) []byte {
		b := bytes.Clone(good)
		b[i] ^= 0x40
		return b
	}
	tests := map[string]struct {
		line []byte
		want error
	}{
		"kind":      {flip(0), ErrCorrupt},
		"stream":    {flip(1), ErrCorrupt},
		"session":   {flip(2), ErrCorrupt},
		"length":    {flip(4), ErrCorrupt},
		"zero":      {flip(6), ErrCorrupt},
		"check":     {flip(7), ErrCorrupt},
		"shifted":   {good[1:], ErrCorrupt},
		"truncated": {good[:len(good)-1], io.EOF},
		"text":      {[]byte("[    0.000000] Linux version"), ErrCorrupt},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := readFrame(bytes.NewReader(test.line), make([]byte, headerSize+maxPayload))
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestPreambleIsFoundInNoise(t *testing.T) {
	p := preamble{role: roleServer, nonce: newNonce()}
	noises := []string{
		"", "[ 1.0] random: crng init done\r\n", "\xf5", "\xf5\xf5\xf5", magic, magic + "\xf5", magic[:3] + magic[:5],
		magic + "x", magic + "\xf5GOD",
		// Echoes of the client's own preamble, shortened by the terminal.
		magic + "?", magic + "?abc", magic + "?abcdefgh", magic + "!abc\x03", magic + "!abc" + magic[:4],
		// A client's hello that a terminal cut short and echoed.
		magic + "?1234", magic + "?12\r\n", magic + "?",
	}
	for _, noise := range noises {
		r := bufio.NewReader(bytes.NewReader(append([]byte(noise), p.bytes()...)))
		got, err := readPreamble(r, string([]byte{roleServer, roleBeacon}))
		if err != nil || got != p {
			t.Errorf("behind %q: %v, %v", noise, got, err)
		}
	}
}

// FuzzReadFrame feeds the decoder what a hostile guest might send: it must end
// with an error, and what it accepts must encode to the same bytes.
func FuzzReadFrame(f *testing.F) {
	f.Add(appendFrame(nil, frame{kind: kindData, stream: stdout, session: 3, payload: []byte("hello")}))
	f.Add(beacon().bytes())
	f.Add([]byte("\xf5GODWIT"))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, buf := bytes.NewReader(line), make([]byte, headerSize+maxPayload)
		for {
			start := len(line) - r.Len()
			got, err := readFrame(r, buf)
			var p *preambleError
			if errors.As(err, &p) {
				continue
			}
			if err != nil {
				return
			}
			if again := appendFrame(nil, got); !bytes.Equal(again, line[start:len(line)-r.Len()]) {
				t.Fatalf("% x decodes to %v, which encodes to % x", line[start:], got, again)
			}
		}
	})
}

// FuzzServer lets a client that made it through the preamble send anything.
func FuzzServer(f *testing.F) {
	open := appendFrame(nil, frame{kind: kindOpen, session: 1, payload: []byte(`{"op":"get","path":"/proc/self/stat"}`)})
	f.Add(open)
	f.Add(appendFrame(open, frame{kind: kindCredit, stream: stdout, session: 1, payload: []byte{0xff, 0xff, 0xff, 0xff}}))
	f.Add(appendFrame(open, frame{kind: kindData, session: 1, payload: make([]byte, 4096)}))
	f.Add(appendFrame(nil, frame{kind: kindPing, session: 9}))
	f.Add(append(appendFrame(nil, frame{kind: kindEOF, session: 9}), preamble{role: roleClient, nonce: newNonce()}.bytes()...))
	f.Fuzz(func(t *testing.T, line []byte) {
		// A command line that the fuzzer makes up must not run.
		if bytes.Contains(line, []byte("exec")) || bytes.Contains(line, []byte("put")) {
			t.Skip()
		}
		server := &Server{Reaper: NewReaper(), Shutdown: func(bool) error { return nil }}
		in := append(preamble{role: roleClient, nonce: newNonce()}.bytes(), line...)
		server.Serve(struct {
			io.Reader
			io.Writer
			io.Closer
		}{bytes.NewReader(in), io.Discard, io.NopCloser(nil)})
	})
}

// FuzzClient lets a server that made it through the preamble send anything, while
// a command and a copy are waiting for it.
func FuzzClient(f *testing.F) {
	hello := appendFrame(nil, frame{kind: kindHello, payload: []byte(`{"protocol":1}`)})
	with := func(frames ...frame) []byte {
		line := bytes.Clone(hello)
		for _, f := range frames {
			line = appendFrame(line, f)
		}
		return line
	}
	f.Add(with(frame{kind: kindExit, session: 1, payload: []byte(`{"code":3}`)}, frame{kind: kindExit, session: 2, payload: []byte(`{"error":"no"}`)}))
	f.Add(with(frame{kind: kindData, stream: stdout, session: 1, payload: []byte("hello")}, frame{kind: kindEOF, stream: stdout, session: 1}))
	f.Add(with(frame{kind: kindCredit, stream: stdin, session: 1, payload: []byte{0xff, 0xff, 0xff, 0xff}}))
	f.Add(with(frame{kind: kindData, stream: stdout, session: 2, payload: make([]byte, 5000)}, frame{kind: kindPong, session: 3}))
	f.Add(with(frame{kind: kindData, stream: stdin, session: 2}, frame{kind: kindOpen, session: 9}))
	f.Add([]byte("garbage"))
	f.Fuzz(func(t *testing.T, line []byte) {
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			far.Write(beacon().bytes())
			client, err := readPreamble(bufio.NewReaderSize(far, preambleSize), string(roleClient))
			if err != nil {
				return
			}
			go io.Copy(io.Discard, far)
			far.Write(preamble{role: roleServer, nonce: client.nonce}.bytes())
			far.Write(line)
		}()
		c, err := Dial(t.Context(), near)
		if err != nil {
			return
		}
		defer c.Close()
		p, err := c.Start(Command{Args: []string{"x"}, Stdin: bytes.NewReader(make([]byte, 2*windowSize))})
		// The connection ends behind the line, and with it all that waits.
		c.Download(t.Context(), "x", t.TempDir(), CopyOptions{})
		if err == nil {
			p.Wait()
		}
		<-c.Done()
	})
}
