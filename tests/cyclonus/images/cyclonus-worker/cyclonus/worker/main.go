// Makes the connections of a probe from within a pod, all at once. cyclonus' own worker starts a process for each, ten at a
// time, and gives it one second: with all pods on two cores that measures the machine, not the policies.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/mattfenwick/cyclonus/pkg/worker"
)

const patience = 3 * time.Second // what has no answer by then is blocked

func main() {
	jobs := flag.String("jobs", "", "the batch, as JSON")
	flag.Parse()
	var batch worker.Batch
	if err := json.Unmarshal([]byte(*jobs), &batch); err != nil {
		log.Fatal(err)
	}
	results := make([]*worker.Result, len(batch.Requests))
	var all sync.WaitGroup
	for number, request := range batch.Requests {
		all.Go(func() {
			results[number] = &worker.Result{Request: request}
			if err := connect(request); err != nil {
				results[number].Error = err.Error()
			}
		})
	}
	all.Wait()
	text, err := json.Marshal(results)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
}

func connect(request *worker.Request) error {
	address, err := resolve(request.Host)
	if err != nil {
		return err
	}
	switch request.Protocol {
	case "SCTP":
		return connectSCTP(address, request.Port)
	case "UDP":
		return exchangeUDP(fmt.Sprintf("%s:%d", address, request.Port))
	}
	connection, err := net.DialTimeout("tcp4", fmt.Sprintf("%s:%d", address, request.Port), patience)
	if err == nil {
		err = connection.Close()
	}
	return err
}

type answer struct {
	once    sync.Once
	address net.IP
	err     error
}

var answers sync.Map // by host

// Names are no part of what is tested: each is asked for once, and as patiently as it takes.
func resolve(host string) (net.IP, error) {
	found, _ := answers.LoadOrStore(host, &answer{})
	its := found.(*answer)
	its.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
		defer cancel()
		addresses, err := net.DefaultResolver.LookupIP(ctx, "ip4", host)
		if its.err = err; err == nil {
			its.address = addresses[0]
		}
	})
	return its.address, its.err
}

func exchangeUDP(address string) error {
	connection, err := net.Dial("udp4", address)
	if err != nil {
		return err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := connection.Write([]byte("hostname\n")); err != nil {
		return err
	}
	_, err = connection.Read(make([]byte, 1024))
	return err
}

func connectSCTP(address net.IP, port int) error {
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, syscall.IPPROTO_SCTP)
	if err != nil {
		return err
	}
	defer syscall.Close(socket)
	limit := syscall.NsecToTimeval(patience.Nanoseconds())
	if err := syscall.SetsockoptTimeval(socket, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &limit); err != nil {
		return err
	}
	return syscall.Connect(socket, &syscall.SockaddrInet4{Port: port, Addr: [4]byte(address.To4())})
}
