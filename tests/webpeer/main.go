// Webpeer is both ends of a TCP connection for the tests of the network, with a
// real web server and client, so that what the test sees is the network's doing:
//
//	webpeer serve ADDRESS    serves random bytes, and prints their checksum once it listens
//	webpeer get URL          prints the checksum of what is served there
package main

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

const (
	// size is how many bytes are served: many segments, and more than a
	// socket's buffer.
	size    = 1 << 20
	timeout = time.Minute
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "webpeer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) == 2 && args[0] == "get":
		return get(args[1])
	}
	return errors.New("want serve ADDRESS or get URL")
}

func serve(address string) error {
	l, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	body := make([]byte, size)
	rand.Read(body)
	fmt.Printf("%x\n", sha256.Sum256(body))
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		// A client that is gone is the client's affair.
		_, _ = w.Write(body)
	}))
}

func get(url string) error {
	c := http.Client{Timeout: timeout}
	answer, err := c.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, answer.Body)
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if n != size || answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s with %d bytes, want %d", answer.Status, n, size)
	}
	fmt.Printf("%x\n", sum.Sum(nil))
	return nil
}
